// Bills are judged by functions of ours. First argument: "accept" or "refuse".
import { PaymentFilters } from "@golem-sdk/golem-js";

import { order, session } from "./common.mjs";

const verdict = process.argv[2];
const seen = { notes: [], invoices: [], accepted: [], refused: [] };

function noteFilter(note, { agreement, allocation }) {
  seen.notes.push([Number(note.totalAmountDue), agreement.id === note.agreementId, typeof allocation.id]);
  return PaymentFilters.acceptMaxAmountDebitNoteFilter(0.5)(note);
}

function invoiceFilter(invoice, { agreement }) {
  seen.invoices.push([Number(invoice.amount), agreement.id === invoice.agreementId]);
  return verdict === "accept" ? PaymentFilters.acceptMaxAmountInvoiceFilter(0.5)(invoice) : false;
}

await session(async (glm) => {
  glm.payment.events.on("debitNoteAccepted", () => seen.accepted.push("note"));
  glm.payment.events.on("invoiceAccepted", () => seen.accepted.push("invoice"));
  glm.payment.events.on("invoiceRejected", () => seen.refused.push("invoice"));
  glm.payment.events.on("errorAcceptingDebitNote", ({ error }) => seen.refused.push(error.message));
  const rental = await glm.oneOf({
    order: order(
      {},
      {
        demand: { payment: { midAgreementDebitNoteIntervalSec: 1, debitNotesAcceptanceTimeoutSec: 30 } },
        payment: { debitNoteFilter: noteFilter, invoiceFilter },
      },
    ),
  });
  const exe = await rental.getExeUnit();
  if (verdict === "accept") await exe.run("sleep 4");
  await rental.stopAndFinalize();
  return seen;
});
