"""Twenty sentences of nine words, all of one pattern, in which words come again: who does what where."""

from __future__ import annotations

TAGS = ("DET", "ADJ", "ADJ", "NOUN", "VERB", "PREP", "DET", "ADJ", "NOUN")
PROMPT = 3  # words that are given; the others are to be said

SENTENCES = tuple(
    tuple(line.split())
    for line in """
the small grey cat sleeps on the warm sofa
the small brown dog barks at the old gate
a young brown dog runs through the green garden
the old grey cat hides under the wooden table
a little red bird sings in the tall tree
the little blue bird nests in the tall hedge
a hungry young fox waits behind the wooden gate
the hungry old wolf howls at the pale moon
a quiet grey mouse hides behind the warm oven
the quick brown mouse runs under the old sofa
a proud white horse gallops over the green meadow
the tired white horse rests in the dark stable
a clever young girl reads beside the tall window
the tired old woman rests beside the warm fire
a brave little boy climbs over the old wall
the brave young sailor sings on the wide sea
a patient old fisherman waits beside the deep lake
the slow green turtle swims in the deep sea
a noisy black crow calls from the tall tree
the noisy little children play in the dark forest
""".strip().splitlines()
)
