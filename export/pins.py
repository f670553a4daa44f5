"""What is pinned: the serving container, and the TensorRT in it.

A TensorRT plan runs only on the four-part version that built it, so the container's tag and TensorRT's version are one
decision and change together, here. 26.08 because the TensorRT in it can be installed with pip as well, so that
`affserve export` and the server agree, and because it came after the fix that lets a model without a batch axis, our
head, use its CUDA graph (Triton captured such graphs and never found them until July 2026). There are 26.09 and 26.10,
but their notes do not tell which build of TensorRT they hold, and one that pip does not have would be of no use.
Nothing heavy is imported: the command line reads it.
"""

from __future__ import annotations

TRITON_CONTAINER_TAG = "26.08-py3"
# Its release notes say 11.2.1, and 11.2.1.2 is that release's build. A plan made inside the container records the
# version that the container itself states.
TENSORRT_VERSION = "11.2.1.2"
TENSORRT_REQUIREMENT = f"tensorrt-cu13=={TENSORRT_VERSION}"  # for pip
# TensorRT for RTX, of the extra `rtx`; pyproject.toml pins the same.
RTX_MODULE = "tensorrt_rtx_bindings"
RTX_VERSION = "1.7.1.116"
RTX_CAPABILITIES = ("8.6", "8.9", "12.0")  # RTX 30, 40 and 50 cards; one more costs a plan 16 bytes
MINIMUM_DRIVER = 580  # major version, of CUDA 13: containers refuse to start with an older one
S3_CLIENT_IMAGE = "amazon/aws-cli:2.22.0"  # fetches a repository for a pod; what it fetched is compared by hash
OLDEST_COMPUTE_CAPABILITY = "7.5"  # of the container's CUDA


def image() -> str:
    """Return the container's full name, for docker and Kubernetes."""
    return f"nvcr.io/nvidia/tritonserver:{TRITON_CONTAINER_TAG}"


def rtx_requirement(version: str = RTX_VERSION) -> str:
    """Return both packages of one version of TensorRT for RTX, for pip."""
    return " ".join(f"tensorrt-rtx-cu13-{part}=={version}" for part in ("libs", "bindings"))
