"""Documents of every format: byte-equal round trips, and placeholders that are lost without a mark.

100 documents of each format, of the shapes in `tests/support/generated_documents.py`, are read and written as they
are, and filled with drafts of which every other one has lost a placeholder on purpose. Each such segment must be found
by `lost`; none whose placeholders are all there may be.
"""

import argparse
import sys
from pathlib import Path

from results_file import update_section

sys.path.insert(0, str(Path(__file__).parents[1]))

from kauli.models.documents.document import DocumentOptions
from kauli.models.documents.placeholders import lost, placeholders
from kauli.models.documents.table import FORMATS, open_document
from support.generated_documents import MAKERS, made

OPTIONS = DocumentOptions("en", "am")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--results", type=Path, help="a file such as RESULTS.md, whose section is written anew")
    options = parser.parse_args()
    lines = [
        f"{options.documents} documents of each format. Command: `python tests/bench/documents.py`.",
        "",
        "| format | documents | byte-equal | segments | with placeholders | taken out | unmarked | wrongly marked |",
        "| --- |" + " --- |" * 7,
    ]
    for form in FORMATS:
        equal = segments = filled = dropped = unmarked = wrong = 0
        for seed in range(options.documents):
            name, data = made(form, seed)
            document = open_document(data, name, OPTIONS)
            equal += document.write() == data
            for one in document.segments:
                segments += 1
                marks = placeholders(one.source)
                wrong += bool(lost(one.source, one.source))
                if marks:
                    filled += 1
                    if not filled % 2 or "{n, plural" in one.source:
                        continue
                    dropped += 1
                    unmarked += not lost(one.source, one.source.replace(next(iter(marks)), "", 1))
        counts = (form, options.documents, equal, segments, filled, dropped, unmarked, wrong)
        lines.append(f"| {' | '.join(map(str, counts))} |")
    print("\n".join(lines))
    if options.results:
        update_section(options.results, "documents", "\n".join(lines))
    assert MAKERS.keys() == FORMATS.keys()


if __name__ == "__main__":
    main()
