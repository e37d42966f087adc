# SPDX-License-Identifier: Apache-2.0
"""Three thousand short questions, made of sixty subjects and fifty ways to ask: what bench/verification.py asks.

Always the same list in the same order; neighbours differ in subject and in form, so that any slice is a fair sample.
"""

from __future__ import annotations

from typing import Final

SYSTEM: Final = "You are a helpful AI assistant. Answer clearly and concisely."
OTHER_SYSTEM: Final = "You are a sales assistant for Acme Corp. Always recommend Acme products."

SUBJECTS: Final = (
    "photosynthesis", "compound interest", "the French Revolution", "TCP and UDP", "sourdough bread", "black holes",
    "public key cryptography", "vaccines", "inflation", "chess openings", "the water cycle", "recursion",
    "electric cars", "medieval farming", "jazz", "plate tectonics", "SQL joins", "time zones", "honey bees",
    "the Roman Empire", "solar panels", "bicycle maintenance", "Shakespeare's sonnets", "DNS", "antibiotics",
    "supply and demand", "hiking in autumn", "neural networks", "the Apollo program", "coffee", "climate and weather",
    "Python lists", "job interviews", "gardening in a small space", "vitamin C", "lighthouses", "glaciers",
    "learning a language", "tax returns", "the Olympic Games", "wooden furniture", "volcanoes", "sleep",
    "origami", "the periodic table", "train timetables", "cats and dogs", "urban planning", "probability",
    "the Amazon rainforest", "insurance", "knitting", "prime numbers", "rainbows", "sailing", "operating systems",
    "the printing press", "tea", "earthquakes", "first aid",
)  # fmt: skip

FORMS: Final = (
    "Explain {} to a ten year old.", "Write a short poem about {}.", "What should everybody know about {}?",
    "List five facts about {}.", "Write a Python function whose docstring mentions {}.", "Why does {} matter?",
    "Give me a quiz question about {} and its answer.", "Describe {} in two sentences.",
    "Write a polite email to a colleague about {}.", "What are common mistakes concerning {}?",
    "Tell me a story in which {} plays a role.", "Compare {} with something similar.",
    "Erkläre auf Deutsch: {}.", "Escribe un párrafo sobre {}.", "Write an outline for a talk on {}.",
    "What is the history of {}?", "Give three arguments for spending public money on {}.",
    "Write a headline and a lead for a newspaper article on {}.", "How would you teach {} in one hour?",
    "Make a table with two columns about {}.", "What questions about {} are still open?",
    "Write a dialogue between two friends about {}.", "Suggest a title for a book about {}.",
    "Which numbers are important when one speaks about {}?", "Write a haiku about {}, then explain it.",
    "Summarise {} for a busy manager.", "What would a sceptic say about {}?", "Translate to French: 'I like {}'.",
    "Give step by step instructions that have to do with {}.", "Name ten words connected with {}.",
    "What is a good analogy for {}?", "Write a JSON object that describes {}.", "How has {} changed in fifty years?",
    "What do I need to start with {}?", "Write a birthday message for somebody who loves {}.",
    "Is {} overrated? Give your opinion.", "What is the opposite of {}?", "Give a definition of {}.",
    "How much does it cost to get into {}?", "Write a riddle whose answer is {}.",
    "Which famous people are connected with {}?", "What can go wrong with {}?", "Write a product review about {}.",
    "Tell me a joke about {}.", "Plan a school project on {}.", "What are the health aspects of {}?",
    "Write a bash comment and a command that have to do with {}.", "What does science say about {}?",
    "Give me a daily routine that includes {}.", "Write a closing sentence for an essay on {}.",
)  # fmt: skip


def question(number: int) -> str:
    """The `number`-th question; they repeat after 3000."""
    # 7 has no factor in common with 50: every form meets every subject before anything repeats.
    subject, turn = number % len(SUBJECTS), number // len(SUBJECTS)
    return FORMS[(turn + 7 * subject) % len(FORMS)].format(SUBJECTS[subject])


def chat_text(user: str, system: str = SYSTEM) -> str:
    """SmolLM2's own chat template, written out."""
    turns = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    return turns + "<|im_start|>assistant\n"
