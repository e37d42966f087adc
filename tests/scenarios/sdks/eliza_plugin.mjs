// SPDX-License-Identifier: Apache-2.0
// ElizaOS's own TEE plugin, as its registry has it: both providers and the service, in LOCAL mode, for an agent of a
// given salt. Run in the folder it is installed in; DSTACK_SIMULATOR_ENDPOINT says where the guest agent is.
import { pathToFileURL } from "node:url";

const write = process.stdout.write.bind(process.stdout);
console.log = console.info = console.debug = console.warn = () => {};
process.stdout.write = () => true; // the plugin's logger writes there
const plugin = pathToFileURL(`${process.cwd()}/node_modules/@elizaos/plugin-tee/dist/index.js`);
const { teePlugin } = await import(plugin.href);

const runtime = (salt) => ({
  agentId: "agent",
  getSetting: (name) => ({ TEE_MODE: "LOCAL", TEE_VENDOR: "phala", WALLET_SECRET_SALT: salt })[name],
});
const message = { entityId: "entity", roomId: "room", content: { text: "hi" } };
const provider = (name) => teePlugin.providers.find((one) => one.name === name);
const wallet = async (salt) => (await provider("phala-derive-key").get(runtime(salt), message)).values;

await teePlugin.init({}, runtime("salt"));
const attested = await provider("phala-remote-attestation").get(runtime("salt"), message);
const service = await teePlugin.services[0].start(runtime("salt"));
const own = await service.deriveEcdsaKeypair("salt", "evm", "agent");
const told = {
  quote: attested.values.quote,
  timestamp: Number(attested.values.timestamp),
  wallets: [await wallet("salt"), await wallet("salt"), await wallet("other")],
  service: own.keypair.address,
  key_quote: own.attestation.quote,
};
write(JSON.stringify(told));
process.exit(0);
