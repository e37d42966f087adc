# SPDX-License-Identifier: Apache-2.0
"""The words canaries are made of: subjects, ways to ask, in several languages, in code and in numbers (spec AUD-51).

Public on purpose: what keeps a worker from telling a canary is that ordinary people ask the same things, not that
nobody knows the list. Any change here is another set, with another name: jurors make the same texts again.
"""

from __future__ import annotations

from typing import Final

SET: Final = "bombyx-canaries-1"

SYSTEMS: Final = (
    "",
    "",
    "You are a helpful assistant.",
    "You are a helpful AI assistant. Answer clearly and concisely.",
    "You answer in plain words and short sentences.",
    "Du bist ein hilfreicher Assistent.",
    "You are a patient tutor.",
    "Answer as an experienced engineer would.",
)

NAMES: Final = (
    "Ada", "Bruno", "Chidi", "Delia", "Emil", "Farah", "Goran", "Hanna", "Ines", "Jonas", "Kenji", "Lena", "Mateo",
    "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Sven", "Tariq", "Uma", "Viktor", "Wanda", "Xenia", "Yusuf", "Zoe",
)  # fmt: skip

PLACES: Final = (
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Lima", "Ghent", "Tallinn", "Hanoi", "Porto", "Graz", "Leeds", "Quito",
    "Zagreb", "Perth", "Cork", "Tunis", "Basel", "Malaga", "Turku", "Sofia",
)  # fmt: skip

SUBJECTS: Final = (
    "tides", "sourdough", "public libraries", "compound interest", "bees", "the water cycle", "chess", "glaciers",
    "train timetables", "vaccines", "rainbows", "insulation", "typewriters", "migration of birds", "composting",
    "photosynthesis", "black holes", "bicycle gears", "sleep", "soap", "volcanoes", "maps", "tea", "earthquakes",
    "lighthouses", "batteries", "origami", "time zones", "noise", "spices", "bridges", "river dams", "wool", "jazz",
    "the printing press", "antibiotics", "prime numbers", "seed banks", "first aid", "electric cars", "clouds",
    "encryption", "recursion", "DNS", "databases", "the Roman roads", "mushrooms", "sailing", "knots", "salt",
)  # fmt: skip

QUESTIONS: Final = (
    "Explain {subject} to {name}, who is ten years old.",
    "What should a visitor to {place} know about {subject}?",
    "List {few} facts about {subject}.",
    "Describe {subject} in two sentences.",
    "Why does {subject} matter?",
    "What are common mistakes concerning {subject}?",
    "Write a short poem about {subject} in {place}.",
    "Write a polite email from {name} to {other} about {subject}.",
    "Give three arguments for spending money on {subject}.",
    "What is a good analogy for {subject}?",
    "Tell me a story in which {name} and {subject} play a role.",
    "Write a quiz question about {subject} and its answer.",
    "Summarise {subject} for a busy manager.",
    "What is the history of {subject}?",
    "Suggest a title for a book on {subject} set in {place}.",
    "Plan a weekend in {place} for {few} people who like {subject}.",
    "What would a sceptic say about {subject}?",
    "How would you teach {subject} in {many} minutes?",
    'Translate to French: "{name} likes {subject}."',
    'Translate to German: "{name} lives in {place} and reads about {subject}."',
)

LANGUAGES: Final = (
    "Erkläre {name} in zwei Sätzen, was an {place} besonders ist.",
    "Was kostet es ungefähr, {few} Tage in {place} zu verbringen?",
    "Schreibe eine kurze Einladung von {name} an {other}.",
    "Escribe un párrafo sobre {place}.",
    "¿Qué puede hacer {name} en {place} un día de lluvia?",
    "Écris une carte postale de {name} depuis {place}.",
    "Donne {few} conseils à {name}, qui déménage à {place}.",
    "Scrivi tre frasi su una giornata di {name} a {place}.",
    "Escreve um bilhete de {name} para {other}.",
)

SUMS: Final = (
    "What is {a} times {b}?",
    "{name} buys {few} tickets at {b} each and pays with {c}00. How much change is there?",
    "A train leaves {place} at {hour}:15 and arrives {a} minutes later. When does it arrive?",
    "What is {a} percent of {c}0?",
    "Is {c} a prime number? Explain briefly.",
    "Sort these numbers: {a}, {b}, {c}, {few}.",
    "Convert {a} kilometres to miles and show the step.",
    "{name} runs {few} km in {many} minutes. What is the pace?",
    "Solve for x: {few}x + {a} = {c}.",
)

CODE: Final = (
    "Write a Python function that returns the {few}th largest number of a list.",
    "Write a SQL query that counts orders above {c} per city.",
    "What does this print?\n\nfor i in range({few}):\n    print(i * {a})",
    "Write a shell command that finds files larger than {c} MB.",
    "Write a regular expression for a time such as {hour}:{many}.",
    "Find the mistake: def add(a, b): return a - b  # {name} expects {a} + {b}",
    "Write a JSON object for a person called {name} aged {many} in {place}.",
    "Rewrite as a list comprehension:\n\nout = []\nfor x in data:\n    if x > {a}:\n        out.append(x * {few})",
    "Explain what `git rebase` does to {name}, who knows only `git merge`.",
)

TURNS: Final = (  # a short earlier exchange, so that some canaries have a history
    ("Hello, I am {name}.", "Hello {name}! How can I help you today?"),
    ("I live in {place}.", "{place} sounds like a good place to live. What would you like to know?"),
    ("Can you help me with {subject}?", "Of course. What about {subject} would you like to know?"),
)

PROSE: Final = (  # for plain completions
    "The best thing about {place} is",
    "{name} opened the door and saw",
    "There are {few} reasons why {subject}",
    "In the year 19{many}, a letter from {place} said that",
    "Once upon a time in {place}, {name} and {other}",
    "The recipe needs {few} eggs, {a} grams of flour and",
    'def average(numbers):\n    """Return the mean of numbers, {few} at least."""\n',
)
