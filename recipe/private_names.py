"""Names of libraries that are private, or documented nowhere, and that this recipe leans on all the same.

An upgrade of torch, Composer or streaming starts here: a test imports every name, and fails when the recipe uses one
that is not listed. Names of a method or attribute follow their class.
"""

from typing import NamedTuple


class PrivateName(NamedTuple):
    """One name, why there is no public way, and what to look at when its library is upgraded."""

    name: str
    reason: str
    upgrade: str


NAMES = (
    # ---- torch
    PrivateName(
        "torch._foreach_copy_", "one launch for all tensors of an average", "a public form; else a loop over copy_"
    ),
    PrivateName(
        "torch._foreach_lerp_", "one launch for all tensors of an average", "a public form; else a loop over lerp_"
    ),
    PrivateName(
        "torch._foreach_norm", "one synchronisation for all gradients", "torch.nn.utils.get_total_norm has come"
    ),
    PrivateName(
        "torch.distributed.fsdp._fully_shard._fsdp_collectives._get_gradient_divide_factors",
        "replaced on CPUs, where gloo's reduce-scatter sums instead of averaging",
        "whether FSDP2 divides by itself there; the test of FSDP against DDP fails if not; and its arguments",
    ),
    PrivateName(
        "torch.cpu.Stream.record_event",
        "replaced on CPUs, where the all-reduce of replicas asserts an event that a CPU stream never records",
        "whether replicas on CPUs train without it",
    ),
    PrivateName(
        "torch.distributed.tensor._utils.compute_local_shape_and_global_offset",
        "which rows of a sharded tensor a rank holds",
        "a public form; the order of what it returns",
    ),
    PrivateName(
        "torch.distributed.checkpoint._nested_dict.unflatten_state_dict",
        "puts the values of a sharded checkpoint back into nested dictionaries",
        "that planner_data still holds the paths",
    ),
    PrivateName(
        "torch.distributed.checkpoint.filesystem.FileSystemReader.read_metadata",
        "unpickles `.metadata` without restriction, so that ours must read it first",
        "whether it, or a part's loader, reads anything that recipe.weights.pickles does not check",
    ),
    PrivateName(
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "what `.metadata` says of a part: file, range and packing",
        "new fields, which may change what is read from a part",
    ),
    PrivateName(
        "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
        "the one enumeration in `.metadata`",
        "METADATA_GLOBALS in recipe.weights.pickles against a checkpoint that the new version writes",
    ),
    PrivateName("torch.serialization._get_layout", "stands in `.metadata`", "as for _MEM_FORMAT_ENCODING"),
    PrivateName(
        "torch.serialization.skip_data",
        "checks the pickles of parts without reading their tensors; public, but called a prototype",
        "that torch.load obeys it",
    ),
    PrivateName(
        "torch.utils._python_dispatch.TorchDispatchMode",
        "counts the activations of a step without running it",
        "its documentation calls it private; the test of the memory plan",
    ),
    PrivateName("torch.utils._pytree.tree_map_only", "finds tensors in arguments", "a public form"),
    # ---- Composer
    PrivateName(
        "composer.callbacks.CheckpointSaver._save_checkpoint",
        "checkpoints wait for the snapshots of their time, and the oldest are deleted after them",
        "when it is called, and that it writes synchronously",
    ),
    PrivateName(
        "composer.loggers.TensorboardLogger._flush",
        "replaced, because it closes the event file: one file for each flush",
        "when it is called; whether it still closes the file",
    ),
    PrivateName(
        "composer.loggers.TensorboardLogger._initialize_summary_writer",
        "replaced, to purge what the checkpoint does not know",
        "its attributes log_dir, run_name and writer",
    ),
    PrivateName(
        "composer.models.ComposerModel._fsdp_wrap",
        "an attribute that Composer reads from modules: False = do not shard what is sharded already",
        "composer.distributed.dist_strategy, which reads it; it is deprecated for FSDP2",
    ),
    PrivateName(
        "composer.utils.parallelism.FSDP2Config",
        "tells Composer that the model is sharded; its degrees are overridden",
        "that its wrapping is still skipped, and its properties",
    ),
    PrivateName("composer.utils.parallelism.ParallelismConfig", "as for FSDP2Config", "as for FSDP2Config"),
    PrivateName("composer.utils.misc.ParallelismType", "names of the mesh's dimensions", "as for FSDP2Config"),
    PrivateName(
        "composer.callbacks.speed_monitor.get_gpu_flops_available",
        "the GPU's peak, which Composer asks for by its own precision and not by the network's",
        "its arguments and its table of GPUs",
    ),
    # ---- streaming
    PrivateName(
        "streaming.StreamingDataset.resample_streams",
        "epochs that draw each class equally often",
        "that it returns (lengths of parts, sample numbers)",
    ),
    PrivateName(
        "streaming.base.dataset._Iterator",
        "the threads behind an epoch, which must end with an error and not with a wait",
        "that on_exit, should_exit, total, ready_index and yield_index are as they were, and _event ends the yielding",
    ),
    PrivateName(
        "streaming.base.dataset._ShardState", "whether a shard is there, being fetched or missing", "its three states"
    ),
    PrivateName("streaming.base.constant.TICK", "how long its threads sleep between looks", "nothing"),
    PrivateName("streaming.base.format.Reader", "a shard, as `set_up_local` gets them", "its file_pairs"),
    PrivateName(
        "streaming.StreamingDataset._evict_coldest_shard",
        "its limit deletes shards of any stream, also the only copy of local data",
        "whether streams without a remote are spared (mosaicml/streaming#988), and that nothing else deletes shards",
    ),
    PrivateName("streaming.StreamingDataset._evict_shard", "deletes one shard, for the above", "its accounts"),
    PrivateName(
        "streaming.StreamingDataset._prepare_thread",
        "its error would only be printed, and the epoch would end early",
        "whether __iter__ raises it",
    ),
    PrivateName(
        "streaming.StreamingDataset._ready_thread",
        "replaced: it waits for ever for a shard that was deleted again",
        "whether it fetches such a shard again",
    ),
    PrivateName(
        "streaming.StreamingDataset._shard_states",
        "an error leaves a shard there as if it were being fetched",
        "whether prepare_shard puts both this and its lock back",
    ),
    PrivateName("streaming.StreamingDataset._shard_access_times", "which shard was read longest ago", "its type"),
    PrivateName("streaming.StreamingDataset._cache_filelock", "an error leaves it locked", "as for _shard_states"),
    PrivateName(
        "streaming.StreamingDataset._unique_rank_world", "which rank counts the cache's bytes", "is_local_leader"
    ),
    PrivateName(
        "streaming.Stream._download_file",
        "replaced: it tries for minutes without a word, also where keys are refused",
        "whether it says when it tries again, and gives up where that cannot help",
    ),
    PrivateName("streaming.Stream._downloader", "fetches one file, for the above", "download and clean_up"),
    PrivateName("streaming.StreamingDataset._event", "ends its threads", "as for _Iterator"),
    PrivateName(
        "streaming.base.spanner.Spanner", "finds a sample by its number; wrapped, so that repeats differ", "its use"
    ),
    PrivateName(
        "streaming.base.util.clean_stale_shared_memory",
        "not called, because it deletes what other runs use; recipe.data.shared_memory knows the names of the segments",
        "the names and the layout of the segments in streaming.base.constant and streaming.base.shared",
    ),
    PrivateName("streaming.base.format.reader_from_json", "reads single samples of shards", "its arguments"),
    PrivateName("streaming.base.format.mds.encodings.mds_decode", "decodes one column", "encodings that unpickle"),
    PrivateName("streaming.base.compression.decompress", "reads single samples of packed shards", "its arguments"),
    PrivateName("streaming.base.compression.get_compressions", "options of prepare.py", "its arguments"),
    PrivateName("streaming.base.compression.is_compression", "options of prepare.py", "its arguments"),
    PrivateName("streaming.base.hashing.get_hashes", "options of prepare.py", "its arguments"),
    PrivateName("streaming.base.hashing.is_hash", "options of prepare.py", "its arguments"),
    PrivateName("streaming.base.util.bytes_to_int", "sizes such as 64mb, as streaming reads them", "its arguments"),
    PrivateName(
        "streaming.base.storage.CloudDownloader",
        "reads the index beside shards in stores other than S3",
        "its arguments",
    ),
    # ---- others
    PrivateName("datasets.Dataset._fingerprint", "tells whether a data set is another one", "a public fingerprint"),
    PrivateName(
        "pickle._Unpickler",
        "the unpickler in Python, whose operations can be taken away",
        "Python 3.13 and later: that load_build, dispatch and stack are as they were",
    ),
)
