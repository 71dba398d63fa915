"""ListOps: the release's format read token for token, and new files that follow its grammar."""

import random

import numpy as np
import pytest

from hgrn.data.lra.listops import FILES, HEADER, OPERATORS, ListOpsData, evaluate, prepare, tokenize
from hgrn.data.lra.listops_generator import Grammar, generate, report
from hgrn.data.lra.vocabulary import UNKNOWN
from hgrn.errors import UserError

# As in the release: explicit parentheses, one more opening one than there are arguments.
NESTED = "( ( ( ( [MAX 2 ) 9 ) ( ( ( [MIN 4 ) 7 ) ] ) ) ] )"


@pytest.fixture
def write_files(tmp_path):
    def write(
        train: list[str],
        validation: list[str] = ("5\t5",),
        test: list[str] = ("5\t5",),
        header: str = HEADER,
    ):
        folder = tmp_path / "listops-1000"
        folder.mkdir(exist_ok=True)
        for split, lines in (("train", train), ("validation", validation), ("test", test)):
            (folder / FILES[split]).write_text("".join(line + "\n" for line in [header, *lines]))
        return folder

    return write


def load(folder, tmp_path, **settings):
    return prepare(ListOpsData(str(folder), cache=str(tmp_path / "cache"), **settings))


def test_parentheses_are_dropped_and_the_bracket_is_a_token():
    assert tokenize(NESTED) == ["[MAX", "2", "9", "[MIN", "4", "7", "X", "X"]


def test_vocabulary_is_that_of_the_release(write_files, tmp_path):
    """4 operators, X, 10 digits and 3 specials have different ids, which give back the tokens."""
    lines = [
        f"( ( ( {operator} {digit} ) {digit} ) ] )\t"
        f"{evaluate([operator, str(digit), str(digit), 'X'])}"
        for operator in OPERATORS
        for digit in range(10)
    ]
    data = load(write_files(lines, [f"{NESTED}\t9"]), tmp_path)
    assert len(data.vocabulary) == 18 and set(data.vocabulary.tokens) == {
        "<pad>",
        "<unk>",
        "<eos>",
        "X",
        *OPERATORS,
        *"0123456789",
    }
    assert data.num_classes == 10
    names = [data.vocabulary.tokens[token] for token in data.splits["validation"].sequence(0)]
    assert names == [*tokenize(NESTED), "<eos>"]
    assert data.splits["validation"].labels.tolist() == [9]
    assert len(data.splits["train"]) == 40


def test_vocabulary_comes_from_the_training_split(write_files, tmp_path):
    data = load(write_files(["( ( ( [SM 1 ) 2 ) ] )\t3"], ["( ( ( [MAX 1 ) 2 ) ] )\t2"]), tmp_path)
    assert data.splits["validation"].sequence(0)[0] == UNKNOWN
    assert UNKNOWN not in data.splits["train"].sequence(0)


@pytest.mark.parametrize("max_length, kept", [(5, 4), (8, 7), (9, 8), (2048, 8)])
def test_long_expressions_are_cut_before_eos(write_files, tmp_path, max_length, kept):
    data = load(write_files([f"{NESTED}\t9"]), tmp_path, max_length=max_length)
    sequence = data.splits["train"].sequence(0)
    assert [data.vocabulary.tokens[token] for token in sequence] == [
        *tokenize(NESTED)[:kept],
        "<eos>",
    ]


@pytest.mark.parametrize(
    "lines, header, message",
    [
        (["5\t5"], "Source,Target", "basic_train.tsv:1: the first line must be the header"),
        (["[SM 5 ]"], HEADER, "basic_train.tsv:2: a line must be an expression, a tab and a digit"),
        (["5\t5", "5\t10"], HEADER, "basic_train.tsv:3: a line must be"),
        (["( )\t5"], HEADER, "basic_train.tsv:2: the expression is empty"),
        ([], HEADER, "basic_train.tsv has no expressions"),
    ],
)
def test_other_files_are_refused(write_files, tmp_path, lines, header, message):
    with pytest.raises(UserError, match=message):
        load(write_files(lines, header=header), tmp_path)


def test_missing_files_are_named(write_files, tmp_path):
    folder = write_files(["5\t5"])
    (folder / FILES["test"]).unlink()
    with pytest.raises(UserError, match="has no basic_test.tsv; name the folder"):
        load(folder, tmp_path)


@pytest.mark.parametrize(
    "expression, value",
    [
        ("[MIN 4 2 7 X", 2),
        ("[MAX 4 2 7 X", 7),
        ("[SM 4 9 7 X", 0),
        ("[MED 4 2 7 X", 4),
        ("[MED 4 2 7 9 X", 5),
        ("[MED 1 2 X", 1),
        ("[SM [MAX 3 [MIN 8 6 X X 9 X", 5),
        ("7", 7),
    ],
)
def test_evaluator(expression, value):
    assert evaluate(expression.split()) == value


@pytest.mark.parametrize(
    "expression",
    ["", "X", "[MIN X", "[MIN 1", "1 2", "1 X", "[MIN 1 X 2", "[FIRST 1 2 X", "1 [SM 2 X"],
)
def test_evaluator_refuses_what_is_no_expression(expression):
    with pytest.raises(ValueError):
        evaluate(expression.split())


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A few hundred expressions by two processes, with what was reported of them."""
    folder = tmp_path_factory.mktemp("generated") / "listops"
    found = generate(folder, seed=3, train=300, validation=20, test=20, processes=2)
    return folder, found


def test_generated_values_are_right(generated):
    folder, _ = generated
    for name, number in zip(FILES.values(), (300, 20, 20)):
        header, *lines = (folder / name).read_text().splitlines()
        assert header == HEADER and len(lines) == number
        for line in lines:
            source, target = line.split("\t")
            assert evaluate(tokenize(source)) == int(target)


def test_generated_parentheses_are_those_of_the_grammar(generated):
    """An operator with k arguments has k + 1 pairs of parentheses: ( ( ( op a ) b ) ] )."""

    def reduce(tokens: list[str]) -> int:
        """How many tokens the expression at the start takes."""
        if tokens[0] in "0123456789":
            return 1
        opening = 0
        while tokens[opening] == "(":
            opening += 1
        # A first argument has its parentheses after the operator, so all before it are the
        # operator's own.
        assert tokens[opening] in OPERATORS
        at = opening + 1
        for _ in range(opening - 1):
            at += reduce(tokens[at : at + 8000])
            assert tokens[at] == ")"
            at += 1
        assert tokens[at : at + 2] == ["]", ")"]
        return at + 2

    folder, _ = generated
    for line in (folder / FILES["test"]).read_text().splitlines()[1:]:
        tokens = line.split("\t")[0].split(" ")
        assert reduce(tokens) == len(tokens)


def test_generated_expressions_keep_to_the_limits(generated):
    folder, found = generated
    lines = [
        line for name in FILES.values() for line in (folder / name).read_text().splitlines()[1:]
    ]
    assert len(set(lines)) == len(lines) == 340
    for line in lines:
        tokens = tokenize(line.split("\t")[0])
        assert 500 < len(tokens) < 2000
        open_now = np.cumsum([(token in OPERATORS) - (token == "X") for token in tokens])
        assert open_now.max() <= 9 and (open_now[:-1] > 0).all()  # a digit may stand at depth 10
    assert max(map(int, found["train"]["depth"])) == 9


def test_report_counts_what_is_there(generated):
    folder, found = generated
    assert {split: found[split] for split in FILES} == report(folder)
    lines = [line.split("\t") for line in (folder / FILES["train"]).read_text().splitlines()[1:]]
    tokens = [tokenize(source) for source, _ in lines]
    lengths = [len(each) for each in tokens]
    train = found["train"]
    assert train["number"] == 300
    assert (train["length"]["min"], train["length"]["max"]) == (min(lengths), max(lengths))
    assert train["length"]["mean"] == pytest.approx(np.mean(lengths))
    assert train["answer"] == {
        str(digit): sum(int(target) == digit for _, target in lines) for digit in range(10)
    }
    assert train["operator"] == {
        operator: sum(each.count(operator) for each in tokens) for operator in OPERATORS
    }
    assert sum(train["depth"].values()) == 300


def test_shares_of_the_grammar(generated):
    """Operators, digits and numbers of arguments (2 to 10) are uniform, in 5 standard errors."""
    folder, found = generated
    operators = np.array(list(found["train"]["operator"].values()))
    expected = operators.sum() / 4
    assert (abs(operators - expected) < 5 * np.sqrt(expected * 3 / 4)).all()
    arity = np.zeros(11)
    digits = np.zeros(10)
    for line in (folder / FILES["train"]).read_text().splitlines()[1:]:
        stack = []
        for token in tokenize(line.split("\t")[0]):
            if token == "X":
                arity[stack.pop()] += 1
            elif stack:
                stack[-1] += 1
            if token in OPERATORS:
                stack.append(0)
            elif token != "X":
                digits[int(token)] += 1
    assert arity[:2].sum() == 0
    assert (abs(digits - digits.mean()) < 5 * np.sqrt(digits.mean())).all()
    # Long expressions have more arguments than the grammar alone would give, though not many more.
    share = arity[2:] / arity.sum()
    assert (abs(share - 1 / 9) < 0.03).all()


def test_files_depend_on_the_seed_only(generated, tmp_path):
    folder, _ = generated
    generate(tmp_path / "one", seed=3, train=300, validation=20, test=20, processes=1)
    generate(tmp_path / "other", seed=4, train=300, validation=20, test=20, processes=1)
    for name in FILES.values():
        content = (folder / name).read_bytes()
        assert content == (tmp_path / "one" / name).read_bytes()
        assert content != (tmp_path / "other" / name).read_bytes()


def test_generated_files_are_read_back(generated, tmp_path):
    folder, found = generated
    data = load(folder, tmp_path)
    assert len(data.vocabulary) == 18
    assert {split: len(each) for split, each in data.splits.items()} == {
        "train": 300,
        "validation": 20,
        "test": 20,
    }
    lengths = data.splits["train"].lengths - 1  # without <eos>
    assert (lengths.min(), lengths.max()) == (
        found["train"]["length"]["min"],
        found["train"]["length"]["max"],
    )


def test_other_lengths(tmp_path):
    found = generate(
        tmp_path / "short",
        train=50,
        validation=5,
        test=5,
        processes=1,
        grammar=Grammar(max_depth=4, max_args=5, min_length=10, max_length=40),
    )
    assert 10 < found["train"]["length"]["min"] <= found["train"]["length"]["max"] < 40
    assert max(map(int, found["train"]["depth"])) <= 3


def test_lengths_and_depths_are_those_of_the_recursive_grammar(tmp_path):
    """The usual way, node by node and dropping trees of the wrong length, has the same results."""
    grammar = Grammar(max_depth=6, max_args=5, min_length=10, max_length=80)
    rng = random.Random(0)

    def node(depth: int) -> tuple[int, int]:
        """Tokens, and operators nested in each other."""
        if depth == grammar.max_depth or rng.random() > 0.25:
            return 1, 0
        children = [node(depth + 1) for _ in range(rng.randint(2, grammar.max_args))]
        return 2 + sum(length for length, _ in children), 1 + max(nested for _, nested in children)

    naive = []
    while len(naive) < 3000:
        tree = node(1)
        if grammar.min_length < tree[0] < grammar.max_length:
            naive.append(tree)
    found = generate(
        tmp_path / "own", seed=1, train=3000, validation=0, test=0, grammar=grammar, processes=1
    )["train"]
    lengths, depths = np.array(naive).T
    assert abs(found["length"]["mean"] - lengths.mean()) < 5 * lengths.std() * np.sqrt(2 / 3000)
    for depth in range(2, 6):
        share = (depths == depth).mean()
        assert abs(found["depth"].get(str(depth), 0) / 3000 - share) < 5 * np.sqrt(
            2 * share * (1 - share) / 3000
        )
    assert len(found["depth"]) >= 4


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train": -1}, "train must not be negative; got -1"),
        ({"processes": 0}, "processes must be at least 1"),
        ({"grammar": Grammar(max_depth=1)}, "max_depth must be at least 2"),
        ({"grammar": Grammar(max_args=1)}, "max_args must be at least 2"),
        (
            {"grammar": Grammar(min_length=9, max_length=10)},
            "must differ by 2 or more; got 9 and 10",
        ),
        (
            {
                "train": 2000,
                "grammar": Grammar(max_depth=2, max_args=2, min_length=3, max_length=5),
            },
            "no more than 400 expressions of .* were found",
        ),
    ],
)
def test_impossible_wishes(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        generate(
            tmp_path / "out", **{"processes": 1, "validation": 0, "test": 0, "train": 1, **settings}
        )
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="exists already; name a new folder"):
        generate(tmp_path, train=1, validation=0, test=0, processes=1)
