"""Payments by ERC-20 transfers on EVM chains.

The only part of the node that speaks to a chain, and it speaks nothing but JSON-RPC.
"""
