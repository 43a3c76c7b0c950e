# SPDX-License-Identifier: Apache-2.0
"""The report card of a job: what went in, what was done, what was measured and what was decided, signed.

`card.json` is `{"card": ..., "signature": ...}` and all that is signed; `card.html` shows the same to people, and
README.md in the served folder is the model card of hubs. What people decide later (an approval, a refusal, an override)
is added to the card, which is then signed again; nothing is ever taken out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import moored
from moored.errors import DataError
from moored.report.html import comparisons
from moored.report.record import Arm, Record, write_whole
from moored.service import audit_log, card_page
from moored.service.clock import now
from moored.service.database import Job, Model
from moored.service.gate import Decision
from moored.service.redaction import redacted
from moored.service.settings import ServerSettings
from moored.service.signing import SigningKey, canonical, holds, read_json
from moored.study.environment import commit

SCHEMA = 1
CARD, PAGE = "card.json", "card.html"
_KIND = "card"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """The rows of a job's training file, and what became of them.

    Args:
        file_id: of the file.
        sha256: of its bytes.
        rows: in it.
        used: trained on.
        flagged: rows by category that the screen found and that were trained on.
        dropped: rows by category that were not.
    """

    file_id: str
    sha256: str
    rows: int = 0
    used: int = 0
    flagged: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the audit of a job gave.

    Args:
        record: of its study.
        decision: of the gate, on one arm of the record.
        tuned: name of the arm before repair; "" if nothing was repaired.
    """

    record: Record
    decision: Decision
    tuned: str = ""

    @property
    def columns(self) -> dict[str, Arm]:
        """The arms by what they are called on a card."""
        names = {"before": self.decision.start, "tuned": self.tuned or self.decision.arm}
        if self.tuned and self.tuned != self.decision.arm:
            names["repaired"] = self.decision.arm
        arms = {arm.name: arm for arm in self.record.arms}
        return {column: arms[name] for column, name in names.items() if name in arms}


def draw_up(
    job: Job, *, upload: Upload, measured: Measured | None = None, model: Model | None = None
) -> dict[str, Any]:
    """The card of a job, not yet signed.

    Args:
        job: as it is in the database; its `error` says why there is no audit, if there is none.
        upload: what went in.
        measured: what came out; None if the job ended before its audit.
        model: the weights, if there are any.
    """
    made = {
        "schema": SCHEMA,
        "job": {
            "id": job.id,
            "model": job.model,
            "suffix": job.suffix,
            "seed": job.seed,
            "method": job.method,
            "hyperparameters": job.hyperparameters or {},
            "trained_tokens": job.trained_tokens,
            "error": job.error,
            "created_at": job.created_at,
        },
        "drawn_up_at": now(),
        "moored": {"version": moored.__version__, "commit": measured.record.commit if measured else commit()},
        "data": asdict(upload),
        "policy": {"sha256": job.policy_sha256, "name": job.policy.get("name", ""), "rules": redacted(job.policy)},
        "weights": _weights(model),
        "decision": measured.decision.record() if measured else None,
        "tasks": _tasks(measured) if measured else [],
        "method": _method(measured) if measured else None,
        "answers": _answers(measured) if measured else [],
        "people": [],
    }
    return dict(read_json(canonical(made)))


def publish(settings: ServerSettings, card: Mapping[str, Any]) -> dict[str, Any]:
    """Sign a card and write it into the job's folder, as JSON and as a page; each whole or not at all.

    Args:
        settings: where the home is.
        card: what `draw_up` gave, or a card that is signed again.

    Returns:
        The signed card.
    """
    key = SigningKey.of(settings.home)
    card = {**card, "audit_log": audit_log.head(settings.home), "signed_at": now()}
    signed = {"card": card, "signature": key.sign(_KIND, card)}
    folder = settings.job(str(card["job"]["id"]))
    # The page first: a card that is there has a page that is not older than it.
    write_whole(folder / PAGE, card_page.page(signed).encode(errors="replace").decode())
    write_whole(folder / CARD, canonical(signed).decode() + "\n")
    return signed


def amend(settings: ServerSettings, job_id: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Add what a person decided to a job's card, and sign it again.

    Args:
        settings: where the home is.
        job_id: whose card.
        entry: what, who, when, why; plain JSON.

    Raises:
        DataError: there is no card, or it is not one that this server signed.
    """
    signed = read_card(settings.job(job_id) / CARD)
    if not verify_card(signed, SigningKey.of(settings.home).public):
        raise DataError(f"the report card of {job_id} is not as this server signed it; nothing is added to it")
    card = signed["card"]
    if card["job"]["id"] != job_id:
        raise DataError(f"the report card in the folder of {job_id} is that of {card['job']['id']}")
    return publish(settings, {**card, "people": [*card["people"], dict(entry)]})


def read_card(path: Path) -> dict[str, Any]:
    """A signed card from its file; `verify_card` says whether it can be believed.

    Raises:
        DataError: there is none, or it is something else.
    """
    try:
        found = read_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}") from error
    if not isinstance(found, dict) or set(found) != {"card", "signature"} or not isinstance(found["card"], dict):
        raise DataError(f"{path.name} is no report card: it must hold `card` and `signature`")
    return found


def verify_card(signed: Mapping[str, Any], public: str) -> bool:
    """Whether a card is what the owner of a public key signed.

    Args:
        signed: the whole card, as plain JSON.
        public: the key that you trust, in base64; not the one that the card names.
    """
    return isinstance(signed.get("card"), dict) and holds(_KIND, signed["card"], signed.get("signature", {}), public)


def lets_serve(signed: Mapping[str, Any], public: str, sha256: str) -> bool:
    """Whether a card says that these weights may be served: by the gate, by a person where one is needed, by override.

    A second word beside the database's: whoever can write there, but has not the signing key, serves nothing by it.

    Args:
        signed: the whole card, as plain JSON.
        public: the key of the server.
        sha256: of the weights as they are now.
    """
    if not verify_card(signed, public):
        return False
    card = signed["card"]
    if not card["weights"] or card["weights"]["sha256"] != sha256:
        return False
    if card["people"]:
        last = card["people"][-1]
        return last["weights_sha256"] == sha256 and (
            last["what"] == "override" or (last["what"] == "approve" and _passed(card))
        )
    return _passed(card) and card["policy"]["rules"].get("gate", {}).get("approval") is False


def _passed(card: Mapping[str, Any]) -> bool:
    return bool(card["decision"]) and card["decision"]["passed"] is True


def model_card(job: Job, measured: Measured) -> str:
    """README.md for the folder of a model.

    It goes into the folder before the folder is hashed, so it says what the gate decided and not what people did later:
    for that it names the report card.

    Args:
        job: what made it.
        measured: what was measured.
    """
    from moored.report.card import card

    decision = measured.decision
    later = f"Whether a person approved it, refused it or overrode the gate is on the signed report card of {job.id}."
    notices = [decision.sentence, f"{later} The decision holds for these exact weights only."]
    return card(_readable(measured.record), decision.arm, notices=notices)


def _readable(record: Record) -> Record:
    """Without what users may not read."""
    return Record.read(redacted(record.plain()))


def _weights(model: Model | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {"model": model.id, "sha256": model.sha256, "start": redacted(model.start)}


def _tasks(measured: Measured) -> list[dict[str, Any]]:
    """What was measured, column by column."""
    columns = measured.columns
    return [
        {
            **redacted(task.model_dump(mode="json")),
            "numbers": {
                column: arm.metrics[task.name].model_dump(mode="json")
                for column, arm in columns.items()
                if task.name in arm.metrics
            },
        }
        for task in measured.record.tasks
    ]


def _method(measured: Measured) -> dict[str, Any]:
    """What was done, with every parameter."""
    record, columns = measured.record.plain(), measured.columns
    chosen = columns.get("repaired") or columns.get("tuned")
    arms = {column: arm.model_dump(mode="json") for column, arm in columns.items()}
    plain = {
        # The recipe stands in the same value as the words, so that a secret named in it is kept out of both.
        "recipe": record["recipe"],
        "chains": {column: arm["chain"] for column, arm in arms.items()},
        "fired": chosen.model_dump(mode="json")["fired"] if chosen else {},
        "repairs": chosen.model_dump(mode="json")["repairs"] if chosen else [],
        "inputs": record["inputs"],
        "prompts": record["prompts"],
        "warnings": record["warnings"],
        "versions": record["versions"],
        "machine": record["machine"],
        "seconds": record["seconds"],
    }
    return dict(redacted(plain))


def _answers(measured: Measured) -> list[dict[str, Any]]:
    """The same prompts, before and after."""
    titles = {"before": "Before", "tuned": "Tuned", "repaired": "Repaired"}
    arms = [arm.model_copy(update={"title": titles[column]}) for column, arm in measured.columns.items()]
    if not arms:
        return []
    shown = measured.record.model_copy(update={"arms": arms, "expectations": []})
    return [asdict(one) for one in comparisons(shown)]
