"""The words and patterns that `predictor.prompts.features` looks for: what a prompt asks for, and of how much."""

_UP_TO_TWENTY = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_OTHER_NUMBERS = {"thirty": 30, "forty": 40, "fifty": 50, "hundred": 100, "dozen": 12, "couple": 2, "few": 3}
NUMBER_WORDS = {word: value for value, word in enumerate(_UP_TO_TWENTY.split())} | _OTHER_NUMBERS
NUMBER_WORDS |= {"several": 4, "single": 1}

# Things that are counted in a request ("five tips").
COUNTED = (
    "items? ways? tips? examples? reasons? steps? questions? lines? bullet points? ideas? facts? things? names? types? "
    "kinds? adjectives? synonyms? benefits? advantages? disadvantages? characteristics? features? strategies methods? "
    "sites? places? books? movies countries cities animals foods? dishes recipes? activities topics? titles? quotes? "
    "suggestions factors elements stages components differences similarities traits qualities pieces scenarios uses "
    "skills goals rules verbs nouns keywords hashtags headlines slogans options tasks sources tools products causes "
    "effects phrases statements events people jokes stanzas? verses?"
)

# Unit of a requested size: the words allowed between number and unit, the unit, and texts of which one stands in it.
SIZE_UNITS = {
    "words": (r"(?:\w+\s){0,1}?", "words?", ("word",)),
    "sentences": (r"(?:\w+[\s-]+){0,1}?", "sentences?", ("sentence",)),
    "paragraphs": (r"(?:\w+[\s-]+){0,1}?", "(?:paragraphs?|pages?)", ("paragraph", "page")),
    "items": (r"(?:[\w-]+\s+){0,3}?", f"(?:{COUNTED.replace(' ', '|')}|words? that)", ("",)),
    "characters": ("", "(?:characters?|letters?)", ("character", "letter")),
    "syllables": ("", "(?:syllables?|digits?|bits?)", ("syllable", "digit", "bit")),
}

# Groups of words that ask for the same act; alternatives are split by a bar.
ACTS = (
    "write generate create list name describe explain summarize|summarise|summary classify|categorize identify find "
    "rewrite|rephrase|paraphrase|reword edit|correct|fix|proofread translate convert|transform|change "
    "calculate|compute|evaluate compare|contrast|difference|differences give provide suggest|recommend what who|whose "
    "when where why how which is|are|was|were|does|do|did|has|have can|could|should|would|will tell compose design "
    "construct|build develop analyze|analyse|discuss extract arrange|order|sort|rank fill|complete|finish "
    "predict|guess choose|select|pick implement determine given define|meaning brainstorm outline make|come "
    "add|insert remove|delete|replace count solve|simplify invent imagine|pretend|act think|reflect "
    "group|divide|split match state detect formulate|pose|ask combine|merge|join elaborate|expand argue|debate "
    "plan|organize|schedule reverse assign label|tag"
)

# Groups of words that say what the answer is or is about.
SUBJECTS = (
    "essay|article|blog|post story|tale|narrative|plot poem|haiku|song|lyrics|verse letter|email|message "
    "speech|presentation|script|monologue|dialogue|conversation report|paper|analysis|review recipe|ingredients "
    "tweet|slogan|tagline|caption|hashtag|motto headline|title|heading|name paragraph summary list|bullet|bulleted "
    "table|chart|diagram function|method program|algorithm|code sql|query html|css|javascript|website class|object "
    "plan|itinerary|schedule|strategy|agenda description|advertisement|ad|product quote|joke|riddle|pun "
    "word|synonym|antonym|adjective sentence|phrase equation|formula|expression outline|steps|instructions "
    "guide|tutorial|process yes|no|true|false number|sum|average|percentage|product date|year|time "
    "capital|country|city|population movie|book|author|actor|character category|sentiment|topic|genre|type "
    "grammar|spelling|grammatical|tense regex|string|substring array|list|tuple|dictionary|dict "
    "dataframe|pandas|column|df tensor|torch|tensorflow|numpy|array plot|matplotlib|figure|axes tree|graph|node|path "
    "prime|integer|digit|number matrix|grid dataset|data|csv|json file|directory|path|url exception|raise|error "
    "random|seed dynamic|minimum|maximum|optimal|modulo player|game|win example|examples "
    "explanation|explain|detail|detailed reason|pros|cons advice|tips|advantage|benefits "
    "short|brief|concise|briefly|simple one-word|single long|comprehensive|thorough|in-depth|elaborate "
    "rhyme|creative|funny|fictional history|war|century|ancient science|physics|chemistry|biology "
    "health|medical|disease|exercise business|company|marketing|customer context|passage|following|text "
    "input|given output|print standard|stdin|input implement|class|method constraints|testcase|testcases|subtask"
)

# Pieces of text that are counted: code, markup, structure.
PIECES = (
    "```", "`", "def ", "import ", "assert", "class ", "return", "==", "=", "{", "(", "[", "<", "$", "\\", "\n\n", '"',
    "'", ":", ",", ";", "?", "!", "...", "http", "_", "#", "*", "|", "->", "%", "/", "\n- ", "\n* ", "print", "input(",
    "np.", "pd.", "df", "torch", "for ", "while ", "if ",
)  # fmt: skip

# White space that holds a line end, r"\n\s*" in linear time; the group is the line end.
AFTER_LINE_END = r"(?<!\s)[^\S\n]*+(\n)\s*+"
# A line starts after a line end, and at the start of the text.
_LINE_START = rf"(?:\A\s*+|{AFTER_LINE_END})"

# Patterns of lower-case text that are present or absent, and texts of which one stands wherever the pattern does.
# Possessive (`*+`) so that none takes quadratic time.
MARKS = {
    r"\binput\s*+:": ("input",),
    r"\boutput\s*+:": ("output",),
    r"\bcontext\s*+:": ("context",),
    r"question\s*+:": ("question",),
    rf"\banswer\s*+:|{AFTER_LINE_END}a:[^\S\n]*+\n": ("answer", "a:"),
    r"call-based format": ("call-based format",),
    r"standard input format": ("standard input format",),
    r"begin solution": ("begin solution",),
    r"<code>": ("<code>",),
    r"should output with": ("should output with",),
    r"should raise": ("should raise",),
    r"note that": ("note that",),
    r"---\s*+input": ("---",),
    r"---\s*+constraints|constraints:": ("constraints",),
    r"---\s*+note": ("---",),
    r"example\s*+\d*+\s*+:": ("example",),
    r"\ba[.)]\s.{0,300}\bb[.)]\s": ("b.", "b)"),
    r"true or false": ("true or false",),
    r"\bor\b[^.?!\n]{0,300}\?": ("?",),
    rf"{_LINE_START}(?:is|are|was|were|do|does|did|can|could|should|has|have|will|would)\b": ("",),
    r"step[- ]by[- ]step": ("step",),
    r"in (?:a|one|a single) (?:sentence|word|phrase|line)": ("sentence", "word", "phrase", "line"),
    r"\b(?:in|using) (?:python|java|c\+\+|javascript|sql|html|r)\b": ("in ", "using "),
    r"\bwithout\b": ("without",),
    r"\bat least\b": ("at least",),
    r"\b(?:at most|no more than|less than|maximum of|up to)\b": (
        "at most", "no more than", "less than", "maximum of", "up to",
    ),
    r"you are ": ("you are ",),
    r"\bplease\b": ("please",),
    r"tell me": ("tell me",),
    r"self-contained code": ("self-contained code",),
    r"your code should pass": ("your code should pass",),
    r"lambda|recursion|regex": ("lambda", "recursion", "regex"),
    r"class solution": ("class solution",),
    rf"{_LINE_START}\d++[^\S\n]*+(?:\n|\Z)": ("",),
    r"\bonly\b": ("only",),
    r"\beach\b": ("each",),
    r"\btests?\b": ("test",),
    r"\bfollowing\b": ("following",),
    r"\bgiven\b": ("given",),
}  # fmt: skip
