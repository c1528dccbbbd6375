"""What users of other trainers call our options: the hint for a name that does not exist."""

from collections.abc import Collection, Iterable

# Option -> its usual names elsewhere.
SYNONYMS = {
    "checkpoint.every": "save_every save_steps save_interval save_freq checkpoint_every "
    "checkpoint_interval ckpt_every ckpt_interval",
    "checkpoint.keep": "save_total_limit keep_checkpoints max_checkpoints keep_last",
    "data.cache_dir": "cache_folder dataset_cache",
    "data.tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_file",
    "data.workers": "num_workers num_proc dataloader_num_workers preprocessing_num_workers",
    "engine.offload_optimizer": "cpu_offload offload",
    "engine.sharding": "sharding_strategy shard_strategy",
    "evaluation.batch_size": "eval_batch_size per_device_eval_batch_size val_batch_size",
    "evaluation.every": "eval_every eval_interval eval_steps eval_freq val_every val_interval "
    "val_check_interval validation_every",
    "evaluation.tokens": "eval_tokens val_tokens eval_iters max_eval_steps limit_val_batches",
    "method.alpha": "lora_alpha galore_scale",
    "method.merge_every": "cycle_length reset_every",
    "method.rank": "r lora_rank lora_r rank_size bottleneck",
    "method.ranks": "rank_pattern",
    "method.refresh_every": "update_proj_gap",
    "method.rewarm_steps": "restart_warmup_steps",
    "method.sparsity": "sp_ratio",
    "model": "size model_size model_name model_type model_name_or_path",
    "model.attention": "attn_implementation flash_attention use_flash_attention flash_attn",
    "model.d_ff": "intermediate_size ffn_dim ffn_hidden_size d_inner n_inner hidden_dim mlp_dim",
    "model.d_model": "hidden_size dim n_embd n_embed d embed_dim embedding_dim d_embed width",
    "model.n_heads": "num_attention_heads num_heads n_head heads nhead",
    "model.n_layers": "num_layers n_layer num_hidden_layers layers depth n_blocks",
    "model.norm_eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon",
    "model.rope_theta": "rope_base rotary_base",
    "model.vocab_size": "vocab n_vocab padded_vocab_size",
    "optim": "optimizer optimizer_name optim_name",
    "optim.betas": "beta1 beta2 beta adam_beta1 adam_beta2 adam_betas b1 b2",
    "optim.clip": "grad_clip gradient_clip gradient_clipping grad_clipping clip_grad clip_norm "
    "grad_norm_clip max_grad_norm max_norm gradient_clip_val clip_grad_norm",
    "optim.decay_steps": "cooldown_steps cooldown_iters wsd_decay_steps lr_wsd_decay_iters",
    "optim.eps": "epsilon adam_epsilon adam_eps",
    "optim.lr": "learning_rate base_lr max_lr peak_lr max_learning_rate peak_learning_rate",
    "optim.schedule": "scheduler lr_scheduler lr_scheduler_type lr_decay_style decay_lr lr_decay",
    "optim.weight_decay": "wd decay l2",
    "recompute": "gradient_checkpointing activation_checkpointing activation_checkpoint "
    "grad_checkpoint checkpoint_activations recompute_activations recomputation remat",
    "resume": "resume_from_checkpoint resume_from init_from load_checkpoint load_from restore "
    "continue_from ckpt_path checkpoint_path",
    "run_dir": "output_dir save_dir out_dir output_path results_dir log_dir logging_dir work_dir "
    "dump_folder dump_dir",
    "run_name": "name experiment_name exp_name job_name wandb_name wandb_run_name",
    "seed": "random_seed rng_seed manual_seed",
    "tracking.entity": "wandb_entity wandb_team",
    "tracking.group": "wandb_group",
    "tracking.project": "wandb_project project_name",
    "tracking.tags": "wandb_tags",
    "tracking.tensorboard": "use_tensorboard enable_tensorboard tensorboard_dir tb_log_dir",
    "tracking.wandb": "wandb_mode report_to use_wandb wandb_log logger",
    "train.batch_size": "batch_size bs global_batch_size total_batch_size train_batch_size "
    "effective_batch_size",
    "train.batch_tokens": "tokens_per_batch tokens_per_step global_batch_tokens",
    "train.compile": "torch_compile use_compile jit",
    "train.deterministic": "deterministic_mode use_deterministic_algorithms",
    "train.log_every": "logging_steps log_interval log_steps log_freq logging_interval "
    "log_every_n_steps print_every",
    "train.micro_batch_size": "micro_batch_size microbatch_size micro_batch device_batch_size "
    "per_device_train_batch_size per_device_batch_size per_gpu_batch_size local_batch_size mbs",
    "train.precision": "dtype bf16 fp16 fp8 bfloat16 float16 float8 fp32 mixed_precision amp "
    "autocast torch_dtype param_dtype",
    "train.sequence_length": "seq_len seq_length seqlen sequence_len max_seq_len max_seq_length "
    "max_sequence_length block_size context_length ctx_len n_ctx max_length "
    "max_position_embeddings",
    "train.steps": "max_steps num_steps n_steps num_training_steps total_steps training_steps "
    "train_steps max_iters iterations num_iterations train_iters iters max_train_steps",
    "train.z_loss": "zloss z_loss_weight z_loss_coefficient z_loss_multiplier z_loss_coeff",
    "train.threads": "num_threads omp_num_threads cpu_threads",
}

# What has no option of its own: what to do, and its names.
ADVICE = {
    "training is counted in steps; set train.steps to epochs x the corpus's tokens / "
    "(train.batch_size x train.sequence_length)": (
        "epochs epoch max_epochs num_epochs num_train_epochs n_epochs"
    ),
    "it follows: train.batch_size / (processes x train.micro_batch_size); set "
    "train.micro_batch_size": (
        "gradient_accumulation gradient_accumulation_steps grad_accum grad_accum_steps "
        "accumulate_grad_batches accumulation accumulation_steps accum"
    ),
    "set optim.final_lr_ratio, the last rate / optim.lr": (
        "min_lr min_learning_rate final_lr end_lr eta_min lr_min"
    ),
    "set optim.warmup_steps, or optim.warmup_ratio, their share of train.steps": (
        "warmup warmup_ratio warmup_steps num_warmup_steps warmup_iters warmup_fraction "
        "lr_warmup_steps warmup_epochs"
    ),
    "it spans train.steps; of optim.schedule=wsd, set optim.decay_steps": (
        "lr_decay_iters lr_decay_steps"
    ),
    "pre-training here has none; leave it out": (
        "dropout attn_dropout attention_dropout resid_dropout embd_dropout hidden_dropout"
    ),
    "set train.steps to the tokens wanted / (train.batch_size x train.sequence_length)": (
        "max_tokens total_tokens num_tokens train_tokens token_budget"
    ),
    "the GPU is taken where there is one, else the CPU; leave it out": "device accelerator",
    "there is no tensor parallelism yet; engine.sharding spreads a model": (
        "tensor_parallel tensor_parallel_size tensor_parallel_degree tp tp_size tp_degree"
    ),
    "for files of your own use data=text with data.files=[...]": (
        "dataset dataset_name dataset_path train_file train_files train_data train_path data_path "
        "data_dir data_file data_files corpus files input_file"
    ),
    "for files of your own use data=text with data.validation_files=[...]": (
        "val_file val_files val_data validation_file eval_file eval_data"
    ),
    "processes are started from outside: torchrun --nproc-per-node N -m cola_train, or launch/": (
        "gpus num_gpus n_gpus devices num_devices world_size nproc_per_node nproc num_nodes nnodes"
    ),
}

_OPTION = {alias: option for option, names in SYNONYMS.items() for alias in names.split()}
_ADVICE = {alias: advice for advice, names in ADVICE.items() for alias in names.split()}


def meant(name: str, known: Collection[str]) -> str:
    """The message for an option that others have under this name, in whatever group it was put;
    empty if there is none, or if the group that was written has one like it."""
    prefix, _, last = name.replace("-", "_").lower().rpartition(".")
    if prefix and any(k.startswith(prefix) and k.endswith(f".{last}") for k in known):
        return ""
    if advice := _ADVICE.get(last):
        return f"option `{name}` does not exist: {advice}"
    option = _OPTION.get(last)
    return f"option `{name}` does not exist; did you mean `{option}`?" if option in known else ""


def aliases() -> Iterable[str]:
    return [*_OPTION, *_ADVICE]
