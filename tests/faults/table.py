"""The fault table of docs/jobs.md: which tests show that a row behaves as it says."""

BAD, STORE = "tests/faults/test_bad_checkpoints.py", "tests/faults/test_store_faults.py"
SCAN, LOCAL = "tests/faults/test_scan_faults.py", "tests/scanning/engines/test_local.py"
EVIL = "tests/faults/test_malicious.py"
RAY, NODES = "tests/scanning/engines/test_ray.py", "tests/scanning/engines/test_ray_nodes.py"
SCANNING = "tests/scanning/test_execution.py"

# Row: (file, what the names of its tests begin with after `test_`).
TESTS: dict[int, tuple[tuple[str, str], ...]] = {
    1: ((BAD, "truncated_weights_are_refused"),),
    2: (
        (BAD, "a_header_of_impossible_length_is_refused"),
        (BAD, "a_header_that_would_fill_the_memory"),
        (BAD, "a_header_that_is_a_trap"),
        (BAD, "a_lfs_pointer_is_refused"),
    ),
    3: ((BAD, "a_flipped_bit_of_data_shows"), (SCAN, "verifying_refuses_a_flipped_bit")),
    4: ((BAD, "a_missing_shard_is_refused"),),
    5: ((BAD, "a_missing_tensor_is_refused"), (BAD, "a_missing_expert_is_refused")),
    6: ((BAD, "another_number_of_layers"), (BAD, "a_tensor_nobody_asked_for")),
    7: ((BAD, "another_head_count_of_equal_shapes"), (SCAN, "another_head_count_than_its_siblings")),
    8: ((BAD, "another_rope_is_seen"),),
    9: (
        (BAD, "another_width_is_refused"),
        (BAD, "a_config_that_is_no_models"),
        (BAD, "a_config_of_impossible_numbers"),
    ),
    10: (
        (BAD, "a_number_that_is_not_finite"),
        (BAD, "a_slope_that_is_not_finite"),
        (SCAN, "weights_that_are_not_finite_are_scored_if_allowed"),
    ),
    11: ((BAD, "one_tensor_of_int8"),),
    12: ((BAD, "half_weights_under_a_float_config"),),
    13: (
        (BAD, "a_pickle_is_refused_and_not_run"),
        (EVIL, "each_attack_is_refused"),
        (EVIL, "a_scan_of_a_directory_of_attacks"),
    ),
    14: ((BAD, "a_pickle_beside_safetensors"),),
    15: ((BAD, "code_beside_an_unknown_model"),),
    16: ((BAD, "code_beside_a_known_model"),),
    17: (
        (BAD, "a_shard_outside_the_folder"),
        (BAD, "a_shard_linked_from_outside"),
        (EVIL, "each_attack_is_refused"),
        (EVIL, "weights_from_elsewhere"),
        (BAD, "a_link_into_a_hub_cache"),
    ),
    18: ((BAD, "an_index_that_lacks_a_tensor"), (BAD, "a_tensor_in_two_shards")),
    19: ((BAD, "one_step_twice"),),
    20: (
        (STORE, "killed_writers_leave_no_corrupt_part"),
        (SCANNING, "killed_scans_end_with_the_same_rows"),
        (SCANNING, "many_kills_change_nothing"),
    ),
    21: ((STORE, "a_full_disk_is_reported"), (SCAN, "a_full_disk_ends_the_scan")),
    22: ((STORE, "a_file_size_limit_is_reported"),),
    23: ((STORE, "a_read_only_folder_is_refused"), (SCAN, "a_read_only_run_is_refused_before_any_model")),
    24: (
        (STORE, "two_writers_at_once"),
        (STORE, "a_lock_is_free_as_soon"),
        (SCAN, "a_second_scan_is_refused"),
        (SCAN, "two_scans_that_know_nothing"),
    ),
    25: (
        (SCAN, "tiles_that_do_not_fit_into_the_address_space"),
        (SCAN, "a_checkpoint_too_large_for_the_address_space"),
        (SCAN, "a_checkpoint_that_needs_too_much_memory"),
    ),
    26: (
        (LOCAL, "a_task_that_every_process_dies_of"),
        (RAY, "tasks_are_done_again_when_their_process_dies"),
        (SCANNING, "a_checkpoint_that_workers_die_of"),
    ),
    27: ((SCAN, "a_signal_finishes_the_unit_at_hand"), (SCANNING, "an_interrupt_keeps_what_is_done")),
    28: ((SCAN, "clocks_that_are_wrong"),),
    29: (
        (SCAN, "a_writer_that_was_thought_dead"),
        (NODES, "a_killed_worker_and_a_lost_node_cost_what_was_at_hand"),
    ),
    30: ((SCAN, "a_file_system_without_locks"),),
}
