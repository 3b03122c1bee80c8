# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Makes debs and rpms of a checkout with the tools of the distributions, outside the checkout, and has them linted.

The recipes are debian/ and rpm_spec/, as Qubes' own builder takes them; what they install is said in Makefile alone.
"""

import argparse
import itertools
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from packages.releases import Release, releases

ROOT = Path(__file__).parents[1]
NAME = "qubes-port-forwarding"
_NOT_SOURCE = (".git", ".venv", "__pycache__", ".hypothesis", ".mypy_cache", ".ruff_cache", "*.egg-info", "dist")
_LINTIAN_EXCEPTIONS = {
    "initial-upload-closes-no-bugs": "the packages are meant for the repositories of Qubes, not for Debian's archive",
}
_ENTRY = re.compile(
    r"^\S+ \((?P<version>[^-]+)-(?P<release>[^)]+)\).*?\n(?P<changes>.*?)\n -- (?P<who>.*?)  (?P<when>.*?)$",
    re.MULTILINE | re.DOTALL,
)


class BuildError(Exception):
    """A tool failed; what it said has been printed."""


class Change(NamedTuple):
    """The newest entry of debian/changelog, from which all packages have version and date."""

    version: str
    release: str
    changes: str
    who: str
    when: datetime

    @classmethod
    def read(cls) -> "Change":
        """Raises BuildError when it is not that of the version."""
        text = (ROOT / "debian/changelog").read_text()
        found = _ENTRY.match(text)
        version = (ROOT / "version").read_text().strip()
        if found is None or found["version"] != version:
            raise BuildError(f"debian/changelog does not begin with version {version}")
        when = datetime.strptime(found["when"], "%a, %d %b %Y %H:%M:%S %z")
        return cls(version, found["release"], found["changes"], found["who"], when)

    def for_rpm(self) -> str:
        """The entry as a spec's %changelog has it."""
        lines = (re.sub(r"^ *\* ", "- ", line) for line in self.changes.splitlines() if line.strip())
        return f"* {self.when:%a %b %d %Y} {self.who} - {self.version}-{self.release}\n" + "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """1 when something could not be built, or a linter finds fault."""
    parser = argparse.ArgumentParser(prog="./run packages", description="Build debs and rpms, and lint them.")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", metavar="FOLDER", help="where they go (dist)")
    parser.add_argument("--no-lint", action="store_true", help="build only")
    args = parser.parse_args(argv)
    args.to.mkdir(parents=True, exist_ok=True)
    try:
        change = Change.read()
        with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as folder:
            built = [*_build(Path(folder), change)]
            if not args.no_lint:
                _lint(Path(folder))
            for old in [*args.to.glob(f"{NAME}*.deb"), *args.to.glob(f"{NAME}*.rpm")]:
                old.unlink()
            made = [Path(shutil.copy(package, args.to)) for package in built]
    except BuildError as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    for package in made:
        print(f"{package.stat().st_size / 1024:6.0f} KiB  {package.name}")
    print(f"{len(made)} packages in {args.to}")
    return 0


def _build(folder: Path, change: Change) -> Iterator[Path]:
    source = folder / f"{NAME}-{change.version}"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*_NOT_SOURCE), symlinks=True)
    if shutil.which("dpkg-buildpackage"):
        _say("building debs")
        _pack(source, folder / f"{NAME}_{change.version}.orig.tar.gz", source.name, change, without="debian")
        # Unchecked: every Debian package is said to need a compiler, and these do not.
        _run("dpkg-buildpackage", "--no-check-builddeps", "--unsigned-source", "--unsigned-changes", cwd=source)
        yield from sorted(folder.glob("*.deb"))
    else:
        _say("no debs: dpkg-buildpackage is not here")
    specs = folder / "rpm" / "SPECS"
    specs.mkdir(parents=True)
    recipes = [_Recipe.make(recipe, specs, source, change) for recipe in sorted(source.glob("rpm_spec/*.spec.in"))]
    for release in releases():
        _say(f"building rpms for {release.dist}: {release.purpose}")
        for recipe in recipes:
            yield from recipe.build(release, source)


class _Recipe(NamedTuple):
    """A spec with its archive, in a folder for rpmbuild. `packages`: those that come of it, by their last word."""

    spec: Path
    top: Path
    packages: frozenset[str]

    @classmethod
    def make(cls, recipe: Path, specs: Path, source: Path, change: Change) -> "_Recipe":
        spec = specs / recipe.stem
        text = recipe.read_text()
        for word, value in (("VERSION", change.version), ("REL", change.release), ("CHANGELOG", change.for_rpm())):
            text = text.replace(f"@{word}@", value)
        spec.write_text(text)
        (found,) = re.findall(r"^Name: +(\S+)$", text, re.MULTILINE)
        top = source.parent / "rpm" / found
        _pack(source, top / "SOURCES" / f"{found}-{change.version}.tar.gz", f"{found}-{change.version}", change)
        parts = re.findall(r"^%package +(\S+)$", text, re.MULTILINE)
        return cls(spec, top, frozenset(parts or [found.removeprefix(f"{NAME}-")]))

    def build(self, release: Release, source: Path) -> list[Path]:
        """Those of the packages that the release has."""
        wanted = self.packages & set(release.packages)
        if not wanted:
            return []
        defined = [f"_topdir {self.top}", *_macros(release, source)]
        options = itertools.chain.from_iterable(("--define", words) for words in defined)
        # What they need to be built is no question of the machine's own rpm database.
        _run("rpmbuild", "--nodeps", *options, "-bb", str(self.spec), cwd=source)
        made = self.top / "RPMS/noarch"
        return [path for name in sorted(wanted) for path in made.glob(f"{NAME}-{name}-*.{release.dist}.noarch.rpm")]


def _macros(release: Release, source: Path) -> list[str]:
    """What rpm of this machine does not know as that of the release does."""
    defined = [f"{name} {value}" for name, value in release.macros.items()]
    if _run("rpm", "--eval", "%{python3_sitelib}", cwd=source).startswith("/"):
        return defined
    # One by one, since rpm 4.20 forgets a loaded file when it comes to BuildArch.
    lines = (source / "rpm_spec/not-fedora.macros").read_text().splitlines()
    return [*defined, *(line.removeprefix("%") for line in lines if line.startswith("%"))]


def _pack(source: Path, archive: Path, top: str, change: Change, without: str = "") -> None:
    """The same tree gives the same archive but for gzip's own time."""

    def clean(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if without and Path(member.name).parts[1:2] == (without,):
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = int(change.when.timestamp())
        return member

    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as made:
        made.add(source, top, filter=clean)


def _lint(folder: Path) -> None:
    """Every finding counts that is not listed: above for lintian, in rpm_spec/rpmlint.toml for rpmlint."""
    if changes := sorted(folder.glob("*.changes")):
        _say("lintian")
        listed = ("--pedantic", "--info", "--suppress-tags", ",".join(_LINTIAN_EXCEPTIONS))
        _run("lintian", *listed, "--fail-on", "error,warning,info,pedantic", *map(str, changes))
    _say("rpmlint")
    found = [path for pattern in ("SPECS/*.spec", "*/RPMS/*/*.rpm") for path in folder.glob(f"rpm/{pattern}")]
    _run("rpmlint", "--strict", "--config", str(ROOT / "rpm_spec/rpmlint.toml"), *map(str, found))


def _say(text: str) -> None:
    print(f"packages: {text}", file=sys.stderr, flush=True)


def _run(*argv: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{argv[0]} is not installed; ./run packages installs what it needs") from None
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise BuildError(f"{argv[0]} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
