# SPDX-License-Identifier: Apache-2.0
"""The proxy: matches sealed requests to workers, is paid and pays, and cannot read a byte of what it carries.

settings   what an operator may set            links      a worker's end of the network: handshake, frames
registry   what the chain says, cached         relay      one stream, the hot path: frames in, records out
directory  offers and blobs, as published      dispatch   choice, attempts, failover, settlement
accounts   clients' channels (we are paid)     admission  envelope, limits, payment: who may have a stream
wallet     workers' channels (we pay)          front      routes and problems
scribe     rows, committed in groups           view       what was seen of a request, for its owner to see
roster     linked workers and their keysets    outcomes   what an attempt says of its worker
desk       who may link                        settlement both channels, at an end and after a crash
holdings   the leases this process has         tenancy    several replicas over one store
metrics    counters, without content           runtime    the role: start, drain, stop, restart
"""
