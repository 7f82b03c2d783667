"""Manual pages of Debian packages, and queries about them that rules make.

Packages are downloaded with ``apt-get download`` and unpacked, not installed; groff prints their pages. The test has other packages than
the training, and pages of the training that share text with a page of the test are left out.

* *page*: what a page says it is about ("a fast, versatile … tool"), or a sentence of it, both taken out of it. Find the page.
* *passage*: "exit status of rsync", "--verbose of curl". Find the passage that says it: other pages have the same heading or option, and
  the passage does not name its own page.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hf_longattn.errors import LongAttentionError

PACKAGES = {
    "test": """btrfs-progs cryptsetup-bin cups curl iproute2 iptables ldap-utils lvm2 mdadm mercurial network-manager nfs-common
        openssh-client openssl postfix rsync samba slapd subversion systemd tmux xfsprogs""",
    "train": """bash binutils-common coreutils dovecot-core dpkg-dev e2fsprogs ffmpeg gawk gnupg-utils gpg graphviz groff-base
        manpages manpages-dev perl perl-doc podman procps qemu-utils tar util-linux zsh-common""",
}
LENGTHS = (1000, 8000)
"""Tokens of a page."""
PASSAGE = 110
"""Words of a passage, about."""
SHARED = 0.2
"""Share of a page's eight-word sequences that a page of the test has, at most, for it to be trained on."""
_HEADING = re.compile(r"^[A-Z][A-Z0-9 ,/'()&-]{2,}$", re.MULTILINE)
_OPTION = re.compile(r"^ {3,12}(?:-\w,? ?)?(?P<name>--[a-z][\w-]+).*\n(?= {8,}\S)", re.MULTILINE)
_SENTENCE = re.compile(r"(?:(?<=[.] )|(?<=   ))[A-Z][^.!?:;|\[\]<>{}=]{60,220}\.(?=\s)")
_LEFT_OUT = re.compile(
    r"NAME|SYNOPSIS|SEE ALSO|AUTHORS?(\(S\))?|ACKNOWLEDGE?MENTS|COPYRIGHT|REPORTING BUGS|HISTORY|COLOPHON|LICENSE|VERSION"
)


@dataclass
class Manual:
    """A manual page.

    Attributes:
        name: "rsync".
        about: its description in one line.
        text: the page as groff prints it, without headers and footers.
        passages: first and last character of each; together the whole page.
        asked: what a query asks for, with the characters of its passage: ("exit status", 812, 1304).
    """

    name: str
    package: str
    about: str
    text: str
    passages: list[tuple[int, int]] = field(default_factory=list)
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        headings = list(_HEADING.finditer(self.text))
        starts = {match.start(): match[0] for match in headings}
        section = ""
        marks: list[tuple[int, str]] = []
        for match in sorted([*headings, *_OPTION.finditer(self.text)], key=lambda match: match.start()):
            if match.start() in starts:
                section = match[0]
                marks.append((match.start(), "" if _LEFT_OUT.fullmatch(section) else section.lower()))
            elif not _LEFT_OUT.fullmatch(section):
                marks.append((match.start(), match["name"]))
        for (start, what), (end, _) in zip(marks, [*marks, (len(self.text), "")][1:], strict=True):
            inside = list(_pieces(self.text, start, end))
            self.passages += inside
            if what and not self.names_itself(*inside[0]) and len(self.text[slice(*inside[0])].split()) >= 20:
                self.asked.append((what, *inside[0]))
        if marks and marks[0][0] > 0:
            self.passages.insert(0, (0, marks[0][0]))

    def names_itself(self, start: int, end: int) -> bool:
        """Whether the text between two characters has the page's name or its last part ("prio" of tc-prio)."""
        whole, last = re.sub(r"[-_.@\s]+", r"[-_.@\\s]+", self.name), re.escape(re.split(r"[-_.@\s]+", self.name)[-1])
        return re.search(rf"{whole}|\b{last}\b", self.text[start:end], flags=re.IGNORECASE) is not None


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Paragraphs of a section, joined up to :data:`PASSAGE` words."""
    edges = [start, *(match.end() for match in re.finditer(r"\n\s*\n", text[start:end]))]
    edges = [start, *(start + edge for edge in edges[1:] if start + edge < end), end]
    first = start
    for edge, following in zip(edges[1:], [*edges[2:], end], strict=True):
        if edge == end or len(text[first:following].split()) > PASSAGE:
            yield first, edge
            first = edge


def manuals(split: str, folder: Path) -> list[Manual]:
    """The pages of a split, in a fixed order, each name once.

    Args:
        folder: where packages are unpacked; what is there is not downloaded again.

    Raises:
        LongAttentionError: this is no Debian with groff and the network.
    """
    found: dict[str, Manual] = {}
    for package in PACKAGES[split].split():
        root = folder / package
        if not root.exists():
            _unpack(package, root)
        files = [file for file in sorted(root.glob("usr/share/man/man[1-8]/*.gz")) if not file.is_symlink()]
        with ThreadPoolExecutor(2) as pool:
            for file, text in zip(files, pool.map(_printed, files), strict=True):
                page = _manual(file, package, text)
                if page is not None:
                    found.setdefault(page.name, page)
    return list(found.values())


def _unpack(package: str, root: Path) -> None:
    into = root.with_suffix(".part")
    into.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", package], cwd=into, check=True, capture_output=True)
        (deb,) = into.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", deb.name, "."], cwd=into, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise LongAttentionError(f"the package {package} cannot be had; this study needs Debian 12, apt-get and its archive") from error
    into.rename(root)


def _printed(file: Path) -> str:
    """A page as groff prints it; "" for a page that is another one's."""
    source = gzip.decompress(file.read_bytes())
    if len(source) < 3000 or source.lstrip().startswith(b".so "):
        return ""
    command = ["groff", "-mandoc", "-t", "-Kutf8", "-Tutf8", "-P-cbou", "-rHY=0", "-rLL=90n"]
    return subprocess.run(command, input=source, capture_output=True, check=True).stdout.decode(errors="replace")


def _manual(file: Path, package: str, text: str) -> Manual | None:
    lines = re.sub(r"\n{3,}", "\n\n", text.replace("‐", "-").replace("−", "-")).strip().splitlines()[1:-1]
    text = re.sub(r"(?<=\S)  +", " ", "\n".join(lines).strip()) + "\n"  # lines are filled to both edges
    about = re.search(r"^NAME\n +\S.*? [-–—]+ +((?:.+\n)+)", text, re.MULTILINE)
    if about is None:
        return None
    return Manual(re.sub(r"\.\w+\.gz$", "", file.name), package, " ".join(about[1].split()), text)


def page_queries(page: Manual, rng: random.Random) -> tuple[str, list[tuple[str, float]]] | None:
    """A page without its description and a sentence, and these with the place of each, from 0 to 1; None where it has no sentence."""
    sentences = [match for match in _SENTENCE.finditer(page.text) if not page.names_itself(*match.span())]
    if not sentences or len(page.about.split()) < 3:
        return None
    match, places = rng.choice(sentences), list[tuple[str, float]]()
    asked = [page.about, " ".join(match[0].split())]
    text = page.text
    for words in asked:
        pattern = r"\s+".join(map(re.escape, words.split()))
        at = re.search(pattern, text)
        places.append((words, at.start() / len(text) if at else 0.0))
        text = re.sub(pattern, "", text)
    return text, places


def passage_queries(pages: Sequence[Manual], rng: random.Random, *, least: int = 4, most: int = 4) -> list[tuple[str, Manual, int, int]]:
    """Queries for passages: headings and options that at least ``least`` pages have, at most ``most`` a page."""
    common = Counter(what for page in pages for what in {what for what, _, _ in page.asked})
    queries = []
    for page in pages:
        once = Counter(what for what, _, _ in page.asked)
        asked = [(what, start, end) for what, start, end in page.asked if common[what] >= least and once[what] == 1]
        for what, start, end in rng.sample(asked, min(most, len(asked))):
            queries.append((f"{what} of {page.name}", page, start, end))
    return queries


def without_shared(pages: Sequence[Manual], test: Sequence[Manual]) -> list[Manual]:
    """The pages that share less than :data:`SHARED` of their eight-word sequences with the test."""
    seen = {words for page in test for words in _sequences(page.text)}
    kept = []
    for page in pages:
        own = _sequences(page.text)
        if own and len(own & seen) < SHARED * len(own):
            kept.append(page)
    return kept


def _sequences(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[first : first + 8]) for first in range(len(words) - 7)}
