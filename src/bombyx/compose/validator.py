# SPDX-License-Identifier: Apache-2.0
"""A validator: a model to re-run answers with, ordinary clients to ask through, a stake, and a page for jurors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.http_server import HttpLimits, HttpServer
from bombyx.adapters.pages_http import HttpPages
from bombyx.adapters.state_folder import StateFolder
from bombyx.compose.handing_over import OtherValidators
from bombyx.compose.policy import read_policy
from bombyx.compose.service import Service, fund, open_clock, open_ledger, open_store, stakes_of, validation_of
from bombyx.compose.staking import enter_set
from bombyx.compose.validator_client import ClientAsker
from bombyx.compose.validator_enclave import OptInEnclave, open_enclave
from bombyx.compose.weights import open_served, open_weights
from bombyx.config import ClientConfig, NetworkDescriptor, ValidatorConfig, load
from bombyx.errors import ConfigError
from bombyx.ports import HttpExchange, HttpHandler, Operator, OperatorRole
from bombyx.protocol.audit.rate import rate
from bombyx.protocol.primitives import Address, Digest
from bombyx.roles.validator.asking import Asker
from bombyx.roles.validator.examine import Examiner, Identity, Weights
from bombyx.roles.validator.runtime import NO_ENCLAVE, Enclave, Validator, ValidatorPorts
from bombyx.roles.validator.settings import ValidatorSettings

DECOY_FILE: Final = "decoy.txt"  # requests that the decoy answers wrongly: our own canaries
FIRST_OFFENCE: Final = 0.10  # of its stake, that a convicted worker loses (VAL-11)
DETECTION: Final = 0.9  # of cheated answers that fail: weights at 4 bits, the mildest in bench/verification.py
DEV_FUNDS = 1_000_000_000  # base units a development chain gives a new validator: stake, bonds, gas


async def start(config: ValidatorConfig, network: NetworkDescriptor, state: Path) -> Service:
    from bombyx.compose import key_store

    service = Service(facts={"role": "validator"})
    clock, entropy = open_clock(), SystemEntropy()
    service.stack.callback(StateFolder.hold(state).release)
    key = key_store(state).load_or_create("validator")
    if config.decoy and Address.parse(config.decoy) == key.address:
        raise ConfigError("the decoy is a worker, not the validator itself", rule="AUD-59")
    ledger = open_ledger(network, state)
    service.stack.push_async_callback(ledger.close)
    stakes, validation = stakes_of(ledger), validation_of(ledger)
    if stakes is None or validation is None:
        raise ConfigError("this chain has no contracts of stake and validation", rule="VAL-6")
    store = open_store(state / "validator.db")
    service.stack.push_async_callback(store.close)
    pages = HttpPages()
    service.stack.push_async_callback(pages.close)
    await fund(ledger, key.address, DEV_FUNDS)
    models = await _models(config)
    for model in models.values():
        service.stack.push_async_callback(model.prefill.close)
    enclave = await open_enclave(config, network, key.address, ledger, service) if config.enclave else None
    door = _Door()
    server = HttpServer(door.handle, limits=HttpLimits(max_body=1 << 21))
    await server.start(config.host, config.port)
    service.stack.push_async_callback(server.close)
    url = config.public_url or f"http://{config.host}:{server.port}"
    await ledger.register(_line(key.address, url, enclave), signer=key)
    await enter_set(stakes, OperatorRole.VALIDATOR, config.stake, key)
    parameters = await validation.parameters()
    policy = read_policy(network.policy)
    others = OtherValidators(
        key.address,
        ledger=ledger,
        members=partial(stakes.members, OperatorRole.VALIDATOR),
        forward=pages.forward,
        policy=policy,
        clock=clock,
    )
    minimum = int((await stakes.info()).minimum[OperatorRole.WORKER])
    validator = Validator(
        _settings(config, _audited(config, minimum, parameters.strikes)),
        ValidatorPorts(
            clock=clock,
            entropy=entropy,
            store=store,
            ledger=ledger,
            validation=validation,
            pages=pages,
            asker=_askers(config, network, state),
            others=others,
        ),
        key=key,
        url=url,
        parameters=parameters,
        policy=policy,
        examiner=Examiner(models),
        enclave=NO_ENCLAVE if enclave is None else Enclave(bundle=enclave.bundle, keys=enclave.keys),
    )
    if config.decoy:
        validator.plants.on_asking = lambda digests: _tell_decoy(state / DECOY_FILE, digests)
    await validator.start()
    service.stack.push_async_callback(validator.stop)
    door.open(validator.handle)
    service.facts |= {"url": url, "address": str(key.address), "models": len(models)}
    return service


async def _models(config: ValidatorConfig) -> dict[Identity, Weights]:
    if config.engine:
        return await open_served(
            config.engine, manifest=config.manifest, tokens=config.tokens, ends=config.ends
        )  # fmt: skip
    file = Path(config.model_file) if config.model_file else None
    return await open_weights(file, context=config.context, threads=config.threads)


def _tell_decoy(path: Path, digests: Sequence[Digest]) -> None:
    """One a line; a reader sees the file before or after, never between."""
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{digest.hex()}\n" for digest in digests))
    fresh.replace(path)


class _Door:
    """Listens before the validator stands: its address is part of what it registers."""

    def __init__(self) -> None:
        self._handler: HttpHandler | None = None

    def open(self, handler: HttpHandler) -> None:
        self._handler = handler

    def handle(self, exchange: HttpExchange) -> None:
        if self._handler is None:
            exchange.respond(503, {"retry-after": "2"})
        else:
            self._handler(exchange)


def _askers(config: ValidatorConfig, network: NetworkDescriptor, state: Path) -> Callable[[int], Asker]:
    """A client for each epoch, its payer the next of our accounts."""
    spends = replace(
        load(ClientConfig),
        deposit=config.deposit,
        budget=1_000 * config.deposit,
        signer="",
        signer_account="",
    )
    return lambda epoch: ClientAsker(spends, network, state / "payers" / str(epoch % config.payers))


def _audited(config: ValidatorConfig, minimum: int, strikes: int) -> float:
    """The share of a worker's answers at which one cheat costs what it brings (JDG-21), and never below the floor."""
    saved = config.answer_price * config.saving_bps / 10_000
    lost = FIRST_OFFENCE * minimum / strikes
    return rate(saved, 0.0, detection=DETECTION, fee=config.answer_price, stake=lost)


def _settings(config: ValidatorConfig, audited: float) -> ValidatorSettings:
    return ValidatorSettings(
        audited=audited,
        most_canaries=config.most_canaries,
        share=config.opt_in_bps / 10_000,
        canaries=config.canaries,
        canaries_new=config.canaries_new,
        most_tokens=config.most_tokens,
        single_bps=config.single_bps,
        at_once=config.at_once,
        watch_seconds=config.watch_every,
        accuse=config.accuse,
        appeal=config.appeal,
        plants=config.plants,
        decoy=Address.parse(config.decoy) if config.decoy else None,
        figures=config.figures,
    )


def _line(address: Address, url: str, enclave: OptInEnclave | None) -> Operator:
    """Our line of the registry."""
    return Operator(
        address=address,
        role=OperatorRole.VALIDATOR,
        endpoint=url,
        receipt_address=address,
        pay_authorizer=address,
        pay_key_config=enclave.key_config if enclave is not None else b"",
        price_sheet=Digest.zero(),
        models=(),
    )
