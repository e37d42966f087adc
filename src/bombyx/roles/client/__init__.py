# SPDX-License-Identifier: Apache-2.0
"""The client: appraises workers itself, seals requests, pays, checks every answer, and speaks plain OpenAI to
applications.

It believes no proxy: what a proxy says is a hint until a registry, a digest, a signature or an opened seal agrees.
"""
