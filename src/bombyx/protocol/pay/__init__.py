# SPDX-License-Identifier: Apache-2.0
"""Payment: channels, vouchers, sessions, prices and receipts, as values and tables (docs/spec/payment.md, receipts.md).

price      what a request costs, in integers
view       a channel as the chain sees it; what is presented to it
channel    one channel at the payee: the table of states and events
grant      sessions: a key that speaks for a channel, a window of counters
payee      the payee's book: many channels, sessions, and the rows to write before acting
payer      the payer's side: ceilings within a budget, agreed charges, the freeze
rows       how both sides' states look in a store
receipts   one answer's receipts: what each must say
trail      one answer's receipts in their order
usage      what the final frame opens: counts and output ids
x402       stock x402 clients over HTTP: what is asked and answered; x402_payment: what they present
"""
