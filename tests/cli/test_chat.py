"""`chat`: turns, settings and commands."""

from __future__ import annotations

import re
from collections.abc import Callable

from support.commands import Done

Inside = Callable[..., Done]


def talk(inside: Inside, *lines: str | bytes, options: tuple[str, ...] = ("--seed", "1")) -> Done:
    """A chat of these lines, in which nothing takes long."""
    data = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    done = inside("chat", "gecko-demo", *options, text=data)
    assert done.returncode == 0, done.stderr
    return done


def test_turns_share_a_state(inside: Inside) -> None:
    done = talk(
        inside, "/set max_tokens=8", "Who is there?", "/stats", "And now?", "/stats", "/reset", "/stats", "/exit"
    )
    seen = [int(count.replace(",", "")) for count in re.findall(r"has seen ([\d,]+) tokens", done.stderr)]
    assert 0 < seen[0] < seen[1]
    assert seen[2] == 0
    assert "forgotten\nnothing said yet; the state has seen 0 tokens" in done.stderr


def test_the_same_seed_gives_the_same_chat(inside: Inside) -> None:
    lines = ("/set max_tokens=8", "Who is there?", "Who is there?")
    first = talk(inside, *lines)
    assert first.stdout == talk(inside, *lines).stdout
    assert len(set(first.stdout.splitlines())) == 2
    random = talk(inside, *lines, options=())
    assert "seed=" in random.stderr
    assert "seed=1\n" not in random.stderr


def test_the_last_seed_is_followed_by_the_first(inside: Inside) -> None:
    last = str(2**64 - 1)
    done = talk(inside, "/set max_tokens=1", "Hello", "/set seed", options=("--seed", last))
    assert "seed=0\n" in done.stderr


def test_settings_are_answered_with_what_they_are(inside: Inside) -> None:
    done = talk(
        inside,
        *(
            "/set temperature=0",
            "/set top-k = 5",
            "/set temperature=nan",
            "/set temprature=1",
            "/set seed=-1",
            "/set x=1",
        ),
        *("/set temperature=warm", "/set max_tokens=0", "/set max_tokens", "/set"),
    )
    said = done.stderr.splitlines()[-10:]
    assert said[:2] == ["temperature=0.0", "top_k=5"]
    assert said[2] == "/set temperature=nan: should be a finite number, got nan"
    assert said[3] == "/set temprature=1: no such option; did you mean temperature?"
    assert said[4] == "/set seed=-1: should be greater than or equal to 0, got -1"
    assert said[5].startswith("/set x=1: no such option; expected temperature, top_k")
    assert "should be a valid number" in said[6]
    assert "should be greater than or equal to 1" in said[7]
    assert said[8] == "max_tokens=512"
    assert re.match(r"temperature=0.0 +top_k=5 .*max_tokens=512 +seed=1$", said[9])
    assert "--" not in "".join(said)


def test_unknown_commands_are_no_messages(inside: Inside) -> None:
    done = talk(inside, "/stat", "/nonsense", "  ", "/help")
    assert "unknown command /stat; did you mean /stats?" in done.stderr
    assert "unknown command /nonsense; /help lists them" in done.stderr
    assert done.stdout == ""


def test_a_line_that_is_no_text_is_refused_alone(inside: Inside) -> None:
    done = talk(inside, "/set max_tokens=3", b"caf\xe9", b"\xef\xbb\xbfHello\r", "/stats")
    assert "this line: byte 3 is not UTF-8; expected a text" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_markup_is_text(inside: Inside) -> None:
    done = talk(inside, "/set [/red]=1", "/[bold]x")
    assert "/set [/red]=1: no such option" in done.stderr
    assert "unknown command /[bold]x" in done.stderr
