"""Sizes that both sides enforce before they decode. All in bytes unless the name says otherwise."""

BLOCK_BYTES = 128 * 1024  # one block of an artifact or update; AWS IoT and most hubs stop at 128 KiB
MESSAGE_BYTES = 160 * 1024  # any MQTT payload: a block and its envelope
CONTROL_BYTES = 16 * 1024  # hello, desired state, instructions, acknowledgements
METADATA_BYTES = 2 * 1024 * 1024  # one file of TUF metadata; the one that names every bundle is the largest
METADATA_PAGE_BYTES = 128 * 1024  # of such a file in one message
ROOT_BYTES = 128 * 1024  # root metadata: some hundred keys
SNAPSHOT_BYTES = 64 * 1024
TIMESTAMP_BYTES = 16 * 1024
ARTIFACT_BYTES = 256 * 1024 * 1024  # a bundle, or the weights of a model
MANIFEST_BYTES = 256 * 1024
TENSORS_HEADER_BYTES = 1024 * 1024
TENSORS_COUNT = 4096
BUNDLE_FILES = 32
SAMPLE_DIMENSIONS = 8
SAMPLE_VALUES = 16 * 1024 * 1024  # of one sample before and after a transform
PROFILE_FEATURES = 512
PROFILE_BINS = 256
PROFILE_COUNTERS = 31_000  # of one profile in all; each takes up to 5 bytes, and a profile travels in one message
MEASURED_BYTES = 4096  # what a device measured of a bundle
DIAGNOSTICS_BYTES = BLOCK_BYTES  # a diagnostics archive, which travels in one message
BLOCKS_PER_REQUEST = 64
TOKEN_BYTES = 1024  # a device's token in an Authorization header
TOKEN_LIFE_S = 3600.0  # a token that claims to last longer is refused
