"""Who a repository comes from: signed with a key of one's own, verified with its public half, without a network.

A signature covers every file of the folder. What changes one, such as a version or a plan that is added, wants a
new signature.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from affserve.train.errors import ExportError, MissingExtraError, RepositoryError
from affserve.train.files import write_file

SIGNATURE_FILE = "model.sig"
KEYS = "openssl ecparam -name prime256v1 -genkey -noout -out KEY and openssl ec -in KEY -pubout -out PUBLIC"


def sign(root: Path, key: Path) -> None:
    """Write the signature of a repository into it; key: PEM, private, of an elliptic curve, not encrypted."""
    library = _library()
    ignored = library.hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE])
    try:
        signer = library.signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(ignored)
        with tempfile.TemporaryDirectory() as folder:
            signer.sign(root, Path(folder, SIGNATURE_FILE))
            write_file(root / SIGNATURE_FILE, Path(folder, SIGNATURE_FILE).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"{root} cannot be signed with {key}: {error}; make keys with: {KEYS}") from error


def verify(root: Path, key: Path) -> None:
    """RepositoryError unless every file of a repository is what the owner of a key has signed; key: PEM, public."""
    library = _library()
    if not (root / SIGNATURE_FILE).is_file():
        raise RepositoryError(f"{root} has no {SIGNATURE_FILE}: sign it with: affserve export --out {root} --sign KEY")
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
        verifier.verify(root, root / SIGNATURE_FILE)
    except Exception as error:
        raise RepositoryError(
            f"{root} is not what the owner of {key} signed: {str(error) or type(error).__name__}; get it again from "
            "who signed it, or, if you changed it, sign it again"
        ) from error


def _library() -> Any:
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise MissingExtraError("model-signing", "sharing") from error
    return model_signing
