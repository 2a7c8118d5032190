"""The words of text probes: adjectives and nouns for keys and lists, the spelling alphabet, ordinals."""

from __future__ import annotations

import numpy as np


def _words(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


ADJECTIVES = _words("""
    able amber ancient bare bitter blue bold brave brief bright broad brown busy calm careful cheap clean
    clear clever coarse cold common cool coral crisp curious curly damp dark dear deep dense distant double
    dry dull eager early easy empty even faint fair false famous fast fine firm flat fresh full gentle giant
    glad golden grand grave gray great green happy hard heavy hidden high hollow honest hot huge humble icy
    idle iron jolly keen kind large late lazy light little lively lonely long loose loud low lucky mellow mild
    modern narrow neat new noble noisy odd old open pale patient plain polite poor proud pure quick quiet
    rapid rare raw ready red rich rigid ripe rough round royal rural rusty sad safe salty sandy serious
    shallow sharp short silent silver simple slim slow small smooth soft solid sour spare square steady steep
    still stony stormy strange strict strong sturdy subtle sunny sweet swift tall tame tender thick thin tidy
    tight tiny tired tough urban usual vague vast warm weak wide wild windy wise wooden yellow young
""")

NOUNS = _words("""
    acorn actor anchor animal answer apple apron arch arrow artist attic autumn badge baker ball bank barn
    barrel basket beach bell bench berry bird blanket boat book boot bottle bowl box branch bread brick bridge
    brook broom brush bucket butter button cabin cake camel camp candle canoe canyon captain carpet castle
    cave chain chair cheese cherry chimney circle city cliff clock cloud coast coat comet copper corner cotton
    cousin crane cricket crown cup curtain daisy dance dawn desert desk dish doctor donkey door dragon drawer
    dream drum duck dust eagle engine evening farm farmer feather fence field finger fire flag flame flock
    floor flower flute fog forest fork fox frame frog garden gate glass glove goat grape grass guest guitar
    hammer harbor harvest hat hawk hazel hill honey horse hotel house island ivory jacket jewel judge kettle
    kitchen kite knot ladder lake lamp lantern leaf lemon letter library lion lizard lock maple market meadow
    melon metal mill mirror monkey moon morning mountain museum needle nest nurse oak ocean olive onion orange
    orchard otter owl paint palace paper parrot path pearl pebble pencil pepper piano picture pillow pilot
    pine planet plate pocket poet pond potato prince puzzle rabbit rain ribbon rice ring river road robin
    rocket roof room root rope rose saddle sailor salt scarf school sea seed shadow sheep shell ship shoe
    shore silk singer sister sky snail snow soap sock spider spoon spring stable star statue stone story
    stream street sugar summer sun swan table tailor temple thread tiger tower town train tree tunnel turtle
    valley village violin wagon wall water wave whale wheat wheel willow window winter wolf wool writer yard
""")

# Spelled as in the passkeys of DuoAttention.
ALPHABET = _words("""
    alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec
    romeo sierra tango uniform victor whiskey xray yankee zulu
""")

ORDINALS = _words("""
    first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
    fifteenth sixteenth seventeenth eighteenth nineteenth twentieth
""")

N_COMPOUNDS = len(ADJECTIVES) * len(NOUNS)


def compound(index: int) -> str:
    """The adjective-noun at `index` of all `N_COMPOUNDS`, such as `quiet-river`."""
    adjective, noun = divmod(index, len(NOUNS))
    return f"{ADJECTIVES[adjective]}-{NOUNS[noun]}"


def compounds(n: int, rng: np.random.Generator) -> list[str]:
    """`n` ≤ `N_COMPOUNDS` different adjective-nouns, drawn at random."""
    return [compound(int(index)) for index in rng.permutation(N_COMPOUNDS)[:n]]


def letters(n: int, length: int, rng: np.random.Generator) -> list[str]:
    """`n` different strings of `length` random lower-case letters; `n` is far below their number."""
    strings: dict[str, None] = {}
    while len(strings) < n:
        drawn = rng.integers(97, 123, (n, length), dtype=np.uint8)
        strings |= dict.fromkeys(row.tobytes().decode() for row in drawn)
    return list(strings)[:n]
