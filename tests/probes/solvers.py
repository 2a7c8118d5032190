"""Every task solved by brute force in plain Python, from what a model would see: the text, or the tokens before it."""

import re
from collections import Counter


def asked_and_answered(probe, i):
    """The tokens of sequence i up to its first answer, and the runs of tokens that its answer rows predict."""
    tokens = valid_tokens(probe, i)
    rows = [row for sequence, row in probe.answer_rows.tolist() if sequence == i]
    runs = [[rows[0]]]
    for row in rows[1:]:
        if row == runs[-1][-1] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return tokens[: rows[0] + 1], [[tokens[row + 1] for row in run] for run in runs]


def valid_tokens(probe, i):
    tokens = probe.tokens[i]
    return (tokens if probe.attention_mask is None else tokens[probe.attention_mask[i]]).tolist()


def passkey_text(text):
    return [re.search(r"The pass key is (\d{5})\. Remember it: \1 is the pass key\.", text)[1]]


def niah_text(text):
    pairs = re.findall(r"One of the special magic \w+ for ([\w-]+) is: ([\w-]+)\.", text)
    keys = re.search(r"Question: What (?:is|are) the special magic \w+ for (.+) in the text above\?", text)[1]
    return [value for key in keys.split(", ") for name, value in pairs if name == key]


def multi_passkey_text(text):
    pairs = re.findall(r"it's the (\w+) passkey to the vault: ([a-z ]+)\.", text)
    return [dict(pairs)[ordinal] for ordinal in ("first", "second", "third")[: len(pairs)]]


def variable_tracking_text(text, hops=None):
    assigned = dict(re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})\.", text))
    name = re.search(r"The value of VAR ([A-Z]{5}) is$", text)[1]
    n_followed = 0
    while not name.isdigit():
        name = assigned[name]
        n_followed += 1
    assert hops is None or n_followed == hops
    return [name]


def common_words_text(text):
    listed, question = text.split(" Question: ")
    words = re.findall(r"\d+\. ([a-z-]+)", listed)
    counts = Counter(words)
    n = int(re.search(r"Which (\d+) words", question)[1])
    common = {word for word, _ in counts.most_common(n)}
    assert min(counts[word] for word in common) > max(counts[word] for word in counts if word not in common)
    return [word for word in dict.fromkeys(words) if word in common]


def frequent_words_text(text):
    coded = text.split("do not count.")[1].split(" Question:")[0].split()
    counts = Counter(coded)
    del counts["..."]
    (first, *_), (_, second), (_, third), (_, fourth) = counts.most_common(4)
    assert counts[first] > second > third > fourth
    return [" ".join(word for word, _ in counts.most_common(3))]  # one run of answer rows


def after(context, lead):
    """The positions after each occurrence of `lead` in `context`."""
    return [i + len(lead) for i in range(len(context) - len(lead) + 1) if context[i : i + len(lead)] == lead]


def keyed_tokens(context, n_key, n_answer):
    """The first `n_answer` tokens that followed the last `n_key` tokens of the context where they stood before."""
    *earlier, _ = after(context, context[-n_key:])
    assert len(earlier) == 1
    return context[earlier[0] : earlier[0] + n_answer]


def variable_tracking_tokens(context):
    """Follow pairs from the last token to the one without a pair of its own; also the positions of the pairs."""
    text, token = context[:-2], context[-1]
    read_at, read = None, []
    while positions := [i for i, other in enumerate(text) if other == token and i != read_at]:
        assert len(positions) == 1
        read.append(positions[0])
        read_at = positions[0] + 1
        token = text[read_at]
    return token, read


def common_words_tokens(context, n_common):
    counts = Counter(context[:-1])
    common = {token for token, _ in counts.most_common(n_common)}
    assert min(counts[t] for t in common) > max(n for t, n in counts.items() if t not in common)
    return [token for token in dict.fromkeys(context) if token in common]


def frequent_words_tokens(context):
    counts = Counter(context[:-1]).most_common(5)
    assert len({n for _, n in counts}) == 5
    return [token for token, _ in counts[1:4]]
