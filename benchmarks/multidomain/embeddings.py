"""Picture of the features of a multi-domain model on cases it did not learn from: own norms, and one domain's for all.

python benchmarks/multidomain/embeddings.py MODEL DATA OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from medseg.cases import load_cases
from medseg.files import read_json, write_atomically, write_json
from medseg.inference.model_folder import load_model
from medseg.methods.multidomain.embeddings import draw_embeddings, embed_cases, nearest_centre_accuracy
from medseg.methods.multidomain.method import MultiDomain


def main(model: Path, data: Path, out: Path) -> None:
    """Write OUT.json and two pictures."""
    method = load_model(model)
    assert isinstance(method, MultiDomain)
    cases = load_cases(data, method.config.patient_pattern)
    learnt = set(read_json(model / "metrics.json")["labelled"])
    known = {case.patient for case in cases if case.id in learnt}
    cases = [case for case in cases if case.patient not in known]
    figures: dict[str, object] = {"cases": [case.id for case in cases]}
    for name, common in (("own_norms", None), ("common_norms", method.registry.names[0])):
        scales = embed_cases(method, cases, common)
        figures[name] = [round(nearest_centre_accuracy(scale), 4) for scale in scales]
        picture = draw_embeddings(scales, f"{model.name}, {name.replace('_', ' ')}")
        write_atomically(Path(f"{out}_{name}.png"), lambda path, picture=picture: picture.savefig(path, dpi=110))
    write_json(Path(f"{out}.json"), figures)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
