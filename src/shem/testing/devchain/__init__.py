"""The devnet's chain: a whole Ethereum-like network in one small process.

py-evm executes (rules of the Prague fork), SQLite remembers, aiohttp answers JSON-RPC on loopback. What speaks to it
speaks plain JSON-RPC and cannot tell it from another node, so tests may swap it for any other.

* :class:`~shem.testing.devchain.node.DevChain` runs it inside a test's event loop, with the controls at hand.
* :func:`~shem.testing.devchain.launch.start_devchain` runs it as a process, as
  ``python -m shem.testing.devchain`` does.
* :mod:`~shem.testing.devchain.places` says what is pre-placed in genesis, and where. It imports nothing heavy.

This package itself imports neither py-evm nor aiohttp, so that naming an address costs nothing.
"""
