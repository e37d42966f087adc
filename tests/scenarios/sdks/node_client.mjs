// SPDX-License-Identifier: Apache-2.0
// The real @phala/dstack-sdk makes every call and prints what came back as JSON. Then the calls of ElizaOS's TEE plugin,
// as its code makes them (plugin-tee, LOCAL mode). Arguments: dstack endpoint, tappd endpoint.
import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const require = createRequire(process.cwd() + "/node_modules/");
const { DstackClient, TappdClient, getComposeHash } = require("@phala/dstack-sdk");
console.warn = () => {};
const [dstack, tappd] = process.argv.slice(2);
const client = new DstackClient(dstack);
const hex = (bytes) => Buffer.from(bytes).toString("hex");
// isReachable waits half a second: on a busy machine it is asked again
const reached = async (one) => {
  for (let turn = 0; turn < 20; turn++) if (await one.isReachable()) return true;
  return false;
};
const told = { reachable: await reached(client) };

const info = await client.info();
told.compose_hash = info.compose_hash;
told.compose_hash_by_sdk = getComposeHash(JSON.parse(info.tcb_info.app_compose));
told.app_id = info.app_id;

for (const curve of ["secp256k1", "ed25519"]) {
  const key = await client.getKey("wallet", "pay", curve);
  told[`key_${curve}`] = [hex(key.key), ...key.signature_chain.map(hex)];
}

await client.emitEvent("said", "hello");
const quote = await client.getQuote("hello");
told.quote = quote.quote.replace(/^0x/, "");
told.event_log = quote.event_log;
told.replayed = quote.replayRtmrs();
told.attestation = (await client.attest("x")).attestation;
told.version = (await client.version()).version;

told.signatures = {};
for (const algorithm of ["ed25519", "secp256k1"]) {
  const signed = await client.sign(algorithm, "hi");
  const good = await client.verify(algorithm, "hi", signed.signature, signed.public_key);
  const bad = await client.verify(algorithm, "ih", signed.signature, signed.public_key);
  told.signatures[algorithm] = [good.valid, bad.valid, signed.signature_chain.length];
}
const tls = await client.getTlsKey({ subject: "svc", altNames: ["a.local"], usageRaTls: true });
told.tls = [tls.key.split("\n")[0], tls.certificate_chain.length, tls.asUint8Array(32).length];

// ElizaOS: RemoteAttestationProvider and DeriveKeyProvider
const eliza = new TappdClient(tappd);
const message = { agentId: "agent", timestamp: 1, message: { entityId: "e", roomId: "r", content: "hi" } };
const attested = await eliza.tdxQuote(JSON.stringify(message));
told.eliza = {
  reachable: await reached(eliza),
  quote: attested.quote.replace(/^0x/, ""),
  message: JSON.stringify(message),
  replayed: attested.replayRtmrs(),
};
const solana = await eliza.deriveKey("secret salt", "solana");
const again = await eliza.deriveKey("secret salt", "solana");
const evm = await eliza.deriveKey("other salt", "evm");
const seed = (key) => createHash("sha256").update(key.asUint8Array()).digest("hex");
told.eliza.seeds = [seed(solana), seed(again), seed(evm)];
console.log(JSON.stringify(told));
