"""Plain data and the errors: what every other folder builds on.

Enters: values and structures from anywhere. Leaves: frozen values that check themselves, and typed errors. Separate
because it needs no torch, no ONNX and no TensorRT.

Public: `config`, `constants`, `dtypes`, `errors`, `finding`, `foreign_files`, `fork_safe_lock`, `json_rules`,
`live_parameter_data`, `loggers`, `package`, `precision_outcome`, `precision_report`, `precisions`, `preprocess`,
`profile_sizes`, `progress`, `pytree`, `select_profile`, `shared_memory`, `size_expression`, `spec`, `tf32`,
`threads`, `time_limit`, `tried_candidate`, `user_warning`, `version`, `wording`. The other files belong to this folder
alone.
"""
