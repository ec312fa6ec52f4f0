"""Prompts written for this project that ask for a length, and pairs of them that a person would order.

Few prompts of the public sets ask for a length ("in 300 words"), so a network sees too few to learn what it comes to.
The prompts here are written from templates; their lengths are **a rule's, not a model's**: about what the request asks
for, with the spread that answers have. They only ever train. The rule was checked on the records that ask for a length
(CASTILLO's Dolly and Alpaca rows outside the test split): the median of their lengths over its target was 1.2 for
sentences of 24 tokens, 0.9 for "at most" so many words and 2.7 for items of 22 tokens, which became 26 and 50.
"""

import argparse
from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np

from predictor.prompts.instructions import find_instruction
from predictor.resolve import resolve_predictor

TOPICS = (
    "photosynthesis", "the French Revolution", "black holes", "bread baking", "remote work", "coral reefs", "chess",
    "the stock market", "jazz music", "electric cars", "sleep", "volcanoes", "machine learning", "urban gardening",
    "the Silk Road", "climate change", "coffee", "mountain climbing", "public libraries", "the immune system",
    "space travel", "renewable energy", "pottery", "dogs", "procrastination", "football", "vaccines", "Mars",
    "online privacy", "bicycles", "medieval castles", "insects", "opera", "inflation", "friendship", "tea ceremonies",
    "recycling", "the human heart", "robots", "lighthouses", "honey bees", "migration", "poetry", "thunderstorms",
)  # fmt: skip
# Kind of length: templates, least and largest count, spread of log lengths.
COUNTED: dict[str, tuple[tuple[str, ...], int, int, float]] = {
    "words": (
        (
            "Explain {x} in {n} words.", "Write a {n}-word essay about {x}.", "Write about {x} in exactly {n} words",
            "Describe {x} in about {n} words.", "In {n} words or fewer, what is interesting about {x}?",
            "Write at least {n} words on {x}.", "Tell me about {x}. Use no more than {n} words.",
            "Write an article about {x}. Length: {n} words.", "Escribe un texto de {n} palabras sobre {x}.",
            "Écris un texte de {n} mots sur {x}.", "Schreibe einen Text mit {n} Wörtern über {x}.",
            "Escreva {n} palavras sobre {x}.", "Напиши {n} слов на тему {x}.", "用{n}字介绍 {x}。",
            "{x}について{n}文字で書いて",
            "اكتب {n} كلمة عن {x}", "{x} पर {n} शब्दों में लिखिए",
        ),
        5, 2500, 0.3,
    ),
    "sentences": (
        (
            "Summarize {x} in {n} sentences.", "Explain {x} in {n} short sentences.",
            "Write {n} sentences about {x}.",
            "Give me {n} sentences on {x}.", "Explica {x} en {n} frases.", "Explique {x} en {n} phrases.",
            "Erkläre {x} in {n} Sätzen.", "Explique {x} em {n} frases.", "Объясни в {n} предложениях: {x}",
            "用{n}句话介绍 {x}",
            "{x}を{n}文で説明して", "اشرح {x} في {n} جمل", "{x} को {n} वाक्यों में समझाइए",
        ),
        1, 15, 0.4,
    ),
    "paragraphs": (
        (
            "Write {n} paragraphs about {x}.", "Discuss {x} in {n} paragraphs.", "Describe {x} using {n} paragraphs.",
            "Escribe {n} párrafos sobre {x}.", "Schreibe {n} Absätze über {x}.", "Напиши {n} абзаца на тему {x}",
        ),
        1, 8, 0.4,
    ),
    "items": (
        (
            "List {n} facts about {x}.", "Give me {n} tips about {x}.", "Name {n} things that have to do with {x}.",
            "Write {n} questions about {x}.", "Suggest {n} names for a blog about {x}.", "Dame {n} ideas sobre {x}.",
            "Donne {n} exemples liés à {x}.", "Nenne {n} Gründe für {x}.", "Назови {n} фактов: {x}",
            "列出{n}个关于 {x} 的要点",
        ),
        2, 60, 0.55,
    ),
    "lines": (("Write {n} lines about {x}.", "Write a poem of {n} lines about {x}."), 2, 40, 0.35),
    "pages": (("Write a {n} page report on {x}.", "Write {n} pages about {x}."), 1, 6, 0.45),
    "characters": (("Describe {x} in {n} characters.", "Use at most {n} characters: what is {x}?"), 40, 2000, 0.4),
}  # fmt: skip
# Templates without a count, the tokens of the answer about, spread.
SAID: tuple[tuple[tuple[str, ...], float, float], ...] = (
    (("Is {x} important? Answer yes or no.", "True or false: {x} is older than a century.",
    "Is {x} fun? Yes or no?"), 3, 0.4),
    (("In one word, what is {x}?", "Answer with a single word: what is {x} about?", "One word for {x}"), 3, 0.4),
    (("What comes to mind with {x}? Only the answer, no explanation.",
    "Give only the name: an expert on {x}"), 9, 0.6),
    (("Write a haiku about {x}.", "haiku: {x}", "Escribe un haiku sobre {x}."), 24, 0.3),
    (("Write a tweet about {x}.", "Tweet something on {x}", "Write a slogan for {x}."), 40, 0.4),
    (("Write a headline about {x}.", "Give me a title for a talk on {x}."), 15, 0.5),
    (("Write a limerick about {x}.", "Tell me a joke about {x}."), 55, 0.35),
    (("TL;DR: {x}", "Explain {x} briefly.", "Briefly, what is {x}?", "Keep it short: what is {x}?",
    "{x} in a nutshell",
      "Explica brevemente {x}.", "Explique brièvement {x}.", "Erkläre kurz {x}.", "Кратко объясни: {x}",
      "请简要介绍 {x}",
      "{x}を簡潔に説明して", "اشرح {x} باختصار", "{x} संक्षेप में समझाइए", "Explain {x}, not in detail."), 75, 0.5),
    (("Explain {x} in detail.", "Give a comprehensive overview of {x}.", "Write an in-depth guide to {x}.",
      "Explica {x} detalladamente.", "Explique {x} en détail.", "Erkläre {x} ausführlich.", "Подробно объясни: {x}",
      "请详细介绍 {x}", "{x}を詳しく説明して", "اشرح {x} بالتفصيل", "{x} विस्तार से समझाइए"), 750, 0.4),
    (("Write a poem about {x}.", "Write a short poem on {x}"), 190, 0.4),
    (("Write an email about {x}.", "Write a letter to a friend about {x}."), 270, 0.4),
    (("Write a short story about {x}.",), 480, 0.4),
    (("Write a story about {x}.", "Write an essay about {x}.", "Write a blog post about {x}."), 780, 0.4),
    (("Write the first chapter of a novel about {x}.", "Write a long story about {x}.", "Write a full report on {x}.",
      "Write a screenplay about {x}."), 1250, 0.4),
)  # fmt: skip
GREETINGS = (
    "Hi", "Hi!", "Hello", "hello there", "Hey", "Good morning", "Thanks!", "Thank you so much", "ok", "Bye",
    "How are you?",
    "What's up?", "Hola", "Bonjour", "Guten Tag", "Olá", "Привет", "你好", "こんにちは", "مرحبا", "नमस्ते",
    "Hey, how is it going?",
)  # fmt: skip
# What the rule says beyond `length_words`: greetings, and that long answers fall short of what is asked.
GREETING_TOKENS, GREETING_SPREAD = 22.0, 0.5
FALLS_SHORT_FROM, SHORTFALL = 700.0, 0.75
NUM_DRAWS = 6
# The longer answer of a pair is told from the shorter one where its length is at least so many times the other.
CLEARLY = 1.5

# Shorter first; topics and wordings that no template has. A development set: nothing trains on it.
PAIRS = (
    ("Define entropy in one sentence.", "Write a 2000 word article on entropy."),
    ("Compose a haiku on autumn leaves.", "Compose the opening chapter of a fantasy novel set in autumn."),
    ("List 3 rivers in Europe.", "List 50 rivers in Europe."),
    ("Draft a tweet announcing our bakery.", "Draft a 1,500-word press release announcing our bakery."),
    ("TL;DR of Romeo and Juliet", "A thorough, scene by scene analysis of Romeo and Juliet"),
    ("Was Napoleon French? Just yes or no.", "Was Napoleon French? Discuss at length."),
    ("What is the capital of Peru? One word only.", "Describe the capital of Peru in five paragraphs."),
    ("Briefly introduce the Roman Empire.", "Introduce the Roman Empire in as much detail as you can."),
    ("Give 2 reasons to learn Latin.", "Give 25 reasons to learn Latin."),
    ("Summarise the plot of Dune in 30 words.", "Summarise the plot of Dune in 600 words."),
    ("Write a couplet about my cat.", "Write a ballad of 20 stanzas about my cat."),
    ("Explain recursion in two sentences.", "Explain recursion in six paragraphs with examples."),
    ("Suggest a title for my memoir about sailing.", "Write the preface of my memoir about sailing."),
    ("Translate 'good night' into Italian.", "Write a dialogue of 40 lines in Italian between two neighbours."),
    ("Name one mammal that lays eggs.", "Write a detailed guide to mammals that lay eggs."),
    ("In under 20 words: why is the sea salty?", "In at least 800 words: why is the sea salty?"),
    ("Hi there!", "Plan a ten day trip through Portugal, day by day."),
    ("Give me a one-line bio for a carpenter.", "Give me a full-page bio for a carpenter."),
    ("Do not explain, just answer: 17 * 3", "Explain step by step, for beginners: 17 * 3"),
    ("¿Qué es la inflación? Responde en una frase.", "¿Qué es la inflación? Responde en 700 palabras."),
    ("Nenne drei Berge in Österreich.", "Schreibe einen ausführlichen Reiseführer über Österreich."),
    ("Résume Candide en deux phrases.", "Résume Candide en dix paragraphes."),
    ("用一句话解释重力。", "写一篇1000字的文章解释重力。"),
    ("Ответь одним словом: столица Канады?", "Напиши сочинение на 500 слов про Канаду."),
    ("Resuma Dom Casmurro em uma frase.", "Escreva um ensaio detalhado sobre Dom Casmurro."),
    ("重力を一文で説明して。", "重力について2000文字で詳しく説明して。"),
    (
        "Write a product description for a lamp, 40 words max.",
        "Write a product description for a lamp, 400 words minimum.",
    ),
    ("Sum up the water cycle in a paragraph.", "Write a three page handout on the water cycle."),
    ("Not too long please: how do magnets work?", "Please be exhaustive: how do magnets work?"),
    ("State Ohm's law, formula only, no explanation.", "Derive and explain Ohm's law for a textbook chapter."),
)


def main() -> None:
    """Print how many pairs a predictor orders, and how many by half as much again, by median and by lower bound."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.studies.predictor.instruction_prompts", description=__doc__
    )
    parser.add_argument("predictor", help="run, predictor folder or export")
    parser.add_argument("--model", help="served model (default: the predictor's own)")
    args = parser.parse_args()
    length_predictor = resolve_predictor(args.predictor)
    parts = [length_predictor.predict([pair[side] for pair in PAIRS], model=args.model) for side in (0, 1)]
    for name in ("medians", "lower_bounds"):
        short, long = (getattr(part, name) for part in parts)
        ordered, clearly = int(np.sum(short < long)), int(np.sum(CLEARLY * short <= long))
        print(f"{name}: {ordered} of {len(PAIRS)} pairs ordered, {clearly} by {CLEARLY}x")
    for pair, short, long in zip(PAIRS, parts[0].medians, parts[1].medians, strict=True):
        if CLEARLY * short > long:
            print(f"  {short} and {long} tokens: {pair[0]!r}, {pair[1]!r}")


def instructed_rows(models: Sequence[str], num_prompts: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return records of `num_prompts` prompts from the templates, with draws by the rule for each of `models`."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    texts = dict.fromkeys(GREETINGS, (GREETING_TOKENS, GREETING_SPREAD))
    while len(texts) < num_prompts:
        text, target, spread = _prompt(rng)
        texts.setdefault(text, (target, spread))
    for number, (text, (target, spread)) in enumerate(texts.items()):
        centre = log(target) - max(log(target / FALLS_SHORT_FROM), 0.0) * (1.0 - SHORTFALL)
        for model in models:
            lengths = np.exp(centre + 0.2 * spread * rng.standard_normal() + spread * rng.standard_normal(NUM_DRAWS))
            rows.append(
                {
                    "prompt_id": f"instructed:{number}",
                    "dataset": "instructed",
                    "model": model,
                    "prompt": text,
                    "output_lens": np.maximum(np.rint(lengths), 2).astype(int).tolist(),
                    "is_truncated": [False] * NUM_DRAWS,
                    "split": "train",
                }
            )
    return rows


def _prompt(rng: np.random.Generator) -> tuple[str, float, float]:
    """Return a prompt, the tokens that its answer has about, and their spread."""
    topic = TOPICS[rng.integers(len(TOPICS))]
    if rng.random() < 0.6:
        templates, least, most, spread = COUNTED[sorted(COUNTED)[rng.integers(len(COUNTED))]]
        count = round(float(np.exp(rng.uniform(log(least), log(most)))))
        text = templates[rng.integers(len(templates))].format(x=topic, n=count)
        target = find_instruction(text).target
        return (text, target, spread) if target is not None else _prompt(rng)
    templates, target, spread = SAID[rng.integers(len(SAID))]
    return templates[rng.integers(len(templates))].format(x=topic), target, spread


if __name__ == "__main__":
    main()
