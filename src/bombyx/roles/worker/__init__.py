# SPDX-License-Identifier: Apache-2.0
"""The worker: an enclave that opens sealed requests, runs an engine, seals the answers and signs for them.

    settings   what it is told at its start      runtime    from start to drain, and the clocks
    boot       the parts of one boot, joined     desk       what links ask of the worker
    link       one proxy, many streams           greeting   who is at the other end
    dialling   keeping that link                 streams    one answer's way out, in credit
    uploads    requests on their way in          gate       who may be inside at once
    keys       secrets of a boot and a period    evidence   the bundle that vouches for them
    payments   paid before worked on             ended      ids never served again
    serve      one request's life                asked      what stands inside the seal
    filling    from the engine to the answer     answer     frames, checkpoints, the end
    meter      counts, units, the bill           notary     signed receipts, in one count
    health     an engine that failed, until it is back

It dials out, so it works behind NAT, and knows proxies by their messages alone. Ports come as arguments: nothing here
opens a socket, a file or an environment variable. Its log holds ids, sizes and outcomes; never content, never keys.
"""

from bombyx.roles.worker.boot import WorkerPorts
from bombyx.roles.worker.runtime import Worker
from bombyx.roles.worker.settings import Limits, Price, ProxyPeer, ServedModel, Timings, WorkerSettings

__all__ = ["Limits", "Price", "ProxyPeer", "ServedModel", "Timings", "Worker", "WorkerPorts", "WorkerSettings"]
