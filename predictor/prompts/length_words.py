r"""Words that say how long an answer is to be, in the ten most used languages of chats: data of `instructions`.

Latin and Cyrillic words stand in lower case and are compared as whole words. Chinese, Japanese, Arabic and Hindi join
words, or split them where `\w` does not, and are compared as pieces of text.
"""

# Tokens that one unit takes in an answer, about: words of GPT-like tokenizers, and what models write in a unit.
TOKENS_PER_UNIT = {
    "tokens": 1.0, "characters": 0.25, "words": 1.35, "sentences": 26.0, "lines": 12.0, "items": 50.0,
    "paragraphs": 120.0, "pages": 600.0, "ideographs": 0.9,
}  # fmt: skip

UNITS = {
    "tokens": "token tokens",
    "characters": (
        "character characters letter letters caracter caracteres caractere caractère caractères zeichen buchstaben "
        "символ символа символов знаков"
    ),
    "words": (
        "word words palabra palabras mot mots wort wörter worte wörtern worten palavra palavras "
        "слово слова слов словом словах"
    ),
    "sentences": (
        "sentence sentences oración oraciones frase frases phrase phrases satz sätze sätzen предложение предложения "
        "предложений предложении предложениях предложением фраза фразы фраз"
    ),
    "lines": "line lines línea líneas ligne lignes zeile zeilen linha linhas строка строки строк строке verse verses",
    "paragraphs": (
        "paragraph paragraphs párrafo párrafos paragraphe paragraphes absatz absätze absätzen parágrafo parágrafos "
        "абзац абзаца абзацев абзаце абзацах"
    ),
    "pages": (
        "page pages página páginas seite seiten страница страницы страниц странице страницах chapter chapters "
        "capítulo capítulos chapitre chapitres kapitel глава главы глав"
    ),
    "items": (
        "item items tip tips idea ideas example examples reason reasons fact facts step steps point points "
        "bullet bullets way ways name names question questions suggestion suggestions thing things topic topics "
        "quote quotes synonyms "
        "elementos puntos consejos ejemplos razones pasos ideas maneras formas nombres preguntas "
        "éléments points conseils exemples raisons idées étapes façons noms questions "
        "punkte tipps beispiele gründe ideen schritte namen fragen vorschläge "
        "itens pontos dicas exemplos razões ideias passos maneiras nomes perguntas "
        "пункта пунктов совета советов примера примеров причины причин идеи идей шага шагов способа способов имён "
        "вопросов фактов"
    ),
}

NUMBERS = {
    1: "one single uno una un une ein eine einem einen einer um uma один одну одна одном одно одной одним",
    2: "two couple dos deux zwei dois duas два две двух",
    3: "three few tres trois drei três три трёх трех",
    4: "four several cuatro quatre vier quatro четыре четырёх четырех",
    5: "five cinco cinq fünf пять пяти",
    6: "six seis sechs шесть",
    7: "seven siete sept sieben sete семь",
    8: "eight ocho huit acht oito восемь",
    9: "nine nueve neuf neun nove девять",
    10: "ten diez dix zehn dez десять десяти",
    12: "twelve dozen doce docena douze zwölf doze двенадцать",
    15: "fifteen quince quinze fünfzehn пятнадцать",
    20: "twenty veinte vingt zwanzig vinte двадцать",
    30: "thirty treinta trente dreißig trinta тридцать",
    50: "fifty cincuenta cinquante fünfzig cinquenta пятьдесят",
    100: "hundred cien cent hundert cem сто",
    1000: "thousand mil mille tausend тысяча тысячу",
}

BRIEF = (
    "brief briefly short shortly concise concisely succinct succinctly terse tersely tldr quick quickly shorter "
    "breve breves brevemente corto corta conciso concisa concisamente resumido "
    "bref brève brièvement court courte concis concise succinctement "
    "kurz kurze kurzen kurzer kurzes knapp knappe prägnant "
    "curto curta resumidamente sucinto sucintamente "
    "кратко коротко краткий краткое кратким краткую вкратце сжато лаконично"
)
DETAILED = (
    "detail details detailed comprehensive comprehensively thorough thoroughly elaborate exhaustive exhaustively "
    "extensive extensively lengthy long longer depth indepth "
    "detalle detalles detallado detallada detalladamente extenso extensa exhaustivo exhaustiva largo larga "
    "détail détails détaillé détaillée approfondi approfondie exhaustif exhaustive longue longuement "
    "ausführlich ausführliche ausführlichen ausführlicher detailliert detaillierte detaillierten "
    "umfassend umfassende "
    "lange langen langer "
    "detalhe detalhes detalhado detalhada detalhadamente aprofundado aprofundada longo longa "
    "подробно подробный подробное подробную подробностях детально развёрнуто развернуто развёрнутый длинный длинную"
)
NEGATIONS = (
    "not no don't dont don\u2019t never without avoid isn't needn't nicht kein keine keinen ohne sin "
    "pas sans não nao "
    "sem не без нет"
)
AT_LEAST = "least minimum min over exceeding menos mínimo mindestens moins minimum plus менее минимум not_below"
AT_MOST = (
    "most maximum max under below within fewer less máximo maximal höchstens weniger maximum moins más mais более "
    "максимум до"
)
# What makes a number of things after it a wanted number of items ("list 50 animals").
ACTS = (
    "list name give suggest enumerate recommend generate provide write tell create top show "
    "lista nombra enumera dame escribe sugiere menciona liste nomme cite donne énumère suggère écris "
    "nenne gib liste schreibe zähle liste cite dê escreva sugira назови назовите перечисли перечислите дай дайте "
    "напиши напишите приведи приведите"
)
# What stands before an amount that is asked for, not one that is told of.
ASKING = (
    "in within using exactly about around approximately roughly with least most than under over up to "
    "maximum minimum "
    "of de von en con exactamente aproximadamente unas unos dans avec environ exactement mit etwa genau "
    "ungefähr zirka em com "
    "cerca exatamente aproximadamente в на из около примерно ровно a"
)
# Kinds of text with a usual length, in tokens.
FORMS = {
    12: "slogan tagline motto hashtag eslogan slogan слоган acronym",
    15: "headline title titular título titre titel schlagzeile заголовок название",
    25: "haiku haikus haïku хайку couplet proverb epigram",
    45: "tweet tweets tuit твит caption joke riddle chiste blague witz piada шутка анекдот",
    60: "limerick quatrain tl;dr",
    100: "summary summarize summarise resumen résumé zusammenfassung resumo",
    150: "sonnet soneto sonett сонет abstract",
    220: "poem poema poème gedicht email стихотворение stanza",
    320: "letter carta lettre brief_an письмо",
    700: "story tale cuento historia histoire geschichte história рассказ история sketch",
    900: "essay article blog report speech script ensayo artículo essai aufsatz artikel redação эссе статья статью",
    1500: "screenplay whitepaper thesis textbook dissertation novella novel monograph novela роман",
}

# Pieces of text, any language.
YES_OR_NO = (
    "yes or no", "yes/no", "true or false", "true/false", "sí o no", "si o no", "oui ou non", "ja oder nein",
    "sim ou não", "да или нет", "是或否", "是还是否", "是或不是", "是否回答", "はいかいいえ", "はい」か「いいえ",
    "نعم أو لا", "نعم أم لا",
    "हाँ या नहीं", "हां या नहीं",
)  # fmt: skip
ANSWER_ONLY = (
    "only the answer", "just the answer", "answer only", "only answer with", "no explanation",
    "without explanation",
    "without explaining", "without any explanation", "do not explain", "don't explain", "nothing else",
    "no other text",
    "output only", "only output", "respond only", "reply only", "only respond", "only reply", "only the number",
    "just the number", "only the letter", "only the name", "just the name", "solo la respuesta",
    "sólo la respuesta",
    "sin explicación", "sin explicaciones", "seulement la réponse", "uniquement la réponse", "sans explication",
    "nur die antwort", "ohne erklärung", "apenas a resposta", "só a resposta", "sem explicação", "только ответ",
    "без объяснений", "без пояснений", "只回答", "仅回答", "只输出", "不要解释", "无需解释", "だけ答え",
    "のみ答え", "説明は不要",
    "説明なし", "فقط الإجابة", "الإجابة فقط", "بدون شرح", "केवल उत्तर", "सिर्फ उत्तर", "बिना स्पष्टीकरण",
)  # fmt: skip
BRIEF_PIECES = (
    "in a nutshell", "in short", "tl;dr", "tl dr", "in a few words", "one-liner", "one liner", "en pocas palabras",
    "en quelques mots", "in wenigen worten", "em poucas palavras", "в двух словах", "简短", "简要", "简洁",
    "简单地", "简明",
    "概括", "简述", "簡潔", "短く", "手短", "簡単に", "باختصار", "بإيجاز", "موجز", "مختصر", "संक्षेप", "संक्षिप्त",
    "छोटा", "कम शब्दों",
)  # fmt: skip
DETAILED_PIECES = (
    "in-depth", "step by step", "step-by-step", "as long as possible", "paso a paso", "étape par étape",
    "schritt für schritt", "passo a passo", "шаг за шагом", "详细", "详尽", "深入", "全面", "长篇", "詳しく",
    "詳細", "長文", "長い",
    "بالتفصيل", "مفصل", "تفصيلي", "مطول", "विस्तार", "विस्तृत", "लंबा", "लंबी",
)  # fmt: skip
NEGATED_PIECES = ("不要", "不必", "不用", "无需", "別", "なく", "لا ", "दون", "नहीं")

# Counters that stand right behind a number, as pieces of a pattern, and their unit.
JOINED_UNITS = {
    "ideographs": "字|文字|個字|个字|个汉字",
    "words": "单词|個詞|个词|词|単語|語|كلمات|كلمة|शब्दों|शब्द",
    "sentences": "句话|句話|句|文(?!字|章)|جمل|جملة|वाक्यों|वाक्य",
    "paragraphs": "段落|段|فقرات|فقرة|अनुच्छेद|पैराग्राफ",
    "pages": "页|頁|ページ|صفحات|صفحة|पृष्ठ|पेज|章",
    "lines": "行|أسطر|سطر|पंक्तियों|पंक्ति",
    "items": "个|個|条|條|点|點|项|つ|نصائح|أمثلة|أسباب|أفكار|उदाहरण|सुझाव|कारण|विचार",
}
# Numbers of the same languages; the tens follow from them.
JOINED_NUMBERS = {
    "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10, "百": 100,
    "千": 1000,
    "एक ": 1, "दो ": 2, "तीन ": 3, "पांच ": 5, "पाँच ": 5, "दस ": 10, "ثلاث ": 3, "خمس ": 5, "عشر ": 10,
    "ثلاثة ": 3,
    "خمسة ": 5, "عشرة ": 10,
}  # fmt: skip
# Units that stand alone for one of them.
ALONE = {"جملة واحدة": ("sentences", 1.0), "كلمة واحدة": ("words", 1.0), "فقرة واحدة": ("paragraphs", 1.0)}
