"""Which modules are mutated, and the tests that have to notice it: those that end soonest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_ENGINE: Final = "portal/ops"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Modules that the same tests are responsible for.

    Arguments:
        name: how the command line names it.
        modules: the files to mutate.
        tests: the test files, in the order to run them.
    """

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]


def _of(name: str, place: str, modules: str, tests: str) -> Target:
    return Target(
        name=name,
        modules=tuple(f"{place}/{module}.py" for module in modules.split()),
        tests=tuple(f"tests/{test}.py" for test in tests.split()),
    )


TARGETS: Final = (
    _of(
        "repository",
        f"{_ENGINE}/repository",
        "repository pending sidecar durable locks identity known faults rejected",
        "repository/test_faults repository/test_rejected_counts "
        "repository/test_durable repository/test_lock_files repository/test_sidecars repository/test_identity "
        "repository/test_locks repository/test_sync_order "
        "repository/test_repository repository/test_pending_archives repository/test_owners "
        "repository/test_known_repository",
    ),
    _of(
        "records",
        f"{_ENGINE}/repository",
        "records pins verifications restorability catalogue catalogue_cache bulk_stat",
        "repository/test_chain_faults repository/test_records repository/test_catalogue repository/test_sync_order "
        "repository/test_portal_archives retention/test_prune",
    ),
    _of("codec", _ENGINE, "codec", "core/test_codec repository/test_records"),
    _of(
        "access-log",
        f"{_ENGINE}/repository",
        "access_log access_entry access_check",
        "repository/test_access_entries repository/test_access_log repository/test_sync_order",
    ),
    _of(
        "prune",
        f"{_ENGINE}/retention",
        "prune pin",
        "repository/test_records retention/test_prune_beside_others retention/test_prune repository/test_sync_order",
    ),
    _of(
        "retention",
        f"{_ENGINE}/retention",
        "plan policy",
        "retention/test_never_removed retention/test_retention retention/test_prune",
    ),
    _of(
        "chains",
        f"{_ENGINE}/chains",
        "deletions reader lineage state_cache graph extract",
        "chains/test_extract chains/test_chain_state chains/test_chain verify/test_deletion_lists "
        "restore/test_chain_restore "
        "backup/test_incremental chains/test_chain_lives",
    ),
    _of(
        "verify",
        f"{_ENGINE}/verify",
        "verify job",
        "verify/test_held_against_manifest verify/test_verify_job "
        "verify/test_deletion_lists verify/test_verify_levels archive/test_archive_damage",
    ),
    _of(
        "journal",
        f"{_ENGINE}/restore",
        "journal history files/journal files/record files/changes",
        "restore/files/test_file_journal restore/test_restore_words restore/test_journal restore/test_restore_history "
        "restore/files/test_restore_directory "
        "repository/test_sync_order restore/files/test_file_rollback "
        "restore/files/test_file_restore restore/test_rollback",
    ),
    _of(
        "files",
        f"{_ENGINE}/restore/files",
        "plan preflight tree_rules file_writer free_space report refusals lost_attributes name_set selection stage "
        "restore writers helpers unpacker",
        "restore/files/test_tree_rules restore/files/test_files_words restore/files/test_files_plan "
        "restore/files/test_file_maker restore/files/test_file_writers restore/files/test_file_patterns "
        "restore/files/test_file_rollback restore/test_audit_restore archive/test_hostile_archives "
        "restore/files/test_file_helpers restore/files/test_file_restore",
    ),
    _of(
        "restores",
        f"{_ENGINE}/restore",
        "plan outcome config select_archive components dump_source background_checksum rollback restoration cleanup "
        "live_change context job moment moment_offsite recovered_database source portal_health audit_chain "
        "scratch_dump",
        "restore/test_restore_words restore/test_moment_parts restore/test_restore_config "
        "restore/test_select_archive restore/test_components "
        "restore/test_portal_health restore/test_scratch_dump restore/test_moment_archive restore/test_audit_restore "
        "restore/test_media_alone restore/test_live_change restore/test_rollback restore/test_restore_job "
        "restore/test_restore_refusals restore/test_moment_offsite pitr/test_restore_to_a_moment",
    ),
    _of(
        "database",
        f"{_ENGINE}/restore/database",
        "means model row_check newcomer plan swap live_swap in_place replacement restore stage settle object_check "
        "fill carry blockers",
        "restore/database/test_filling_parts restore/database/test_means restore/database/test_plan_in_words "
        "restore/test_components "
        "restore/database/test_carried_rows restore/database/test_object_check restore/database/test_small_parts "
        "restore/database/test_database_refusals "
        "restore/database/test_database_restore restore/database/test_database_restore_state "
        "restore/database/test_real_portals restore/database/test_statistics",
    ),
    _of(
        "drill",
        f"{_ENGINE}/drill",
        "report compare compare_files scratch job portal_checks moments references credentials",
        "drill/test_drill_words drill/test_compare_files drill/test_media_drill drill/test_moments "
        "drill/test_credentials drill/test_references drill/test_portal_drill drill/test_drill",
    ),
    _of(
        "reader",
        f"{_ENGINE}/archive",
        "reader index frame tar plain damage read_ahead open source runs links",
        "archive/test_frames archive/test_tar_headers archive/test_index_lines archive/test_runs archive/test_reader "
        "archive/test_plain_archives archive/test_lying_indexes archive/test_hostile_archives "
        "archive/test_archive_damage archive/test_uncommon_members "
        "archive/test_archive_round_trip",
    ),
    _of(
        "writer",
        f"{_ENGINE}/archive",
        "writer packer sparse output_file blocks compressor_pool tree_members frame_output index_output",
        "archive/test_frames archive/test_output_file archive/test_writer archive/test_packer archive/test_sparse "
        "archive/test_compression archive/test_changing_trees archive/test_left_out archive/test_uncommon_members "
        "archive/test_archive_round_trip repository/test_pending_archives",
    ),
    _of(
        "backup",
        f"{_ENGINE}/backup",
        "aftercare changes collect config increment job listing loss run search strategy walk written",
        "backup/test_source_states backup/test_backup_config backup/test_manifest_facts backup/test_aftercare "
        "backup/test_backup_limits "
        "backup/test_source_loss backup/test_incremental backup/test_incremental_lines backup/test_backup_requests "
        "backup/test_backup_job backup/test_chained_full backup/test_backup_failures",
    ),
    _of(
        "offsite",
        f"{_ENGINE}/offsite",
        "absent beside commit config copy fetch health layout ledger listing local missing place prune reading "
        "receiving result sending signing state verify wal",
        "offsite/test_commits offsite/test_offsite_words offsite/test_offsite_parts offsite/test_transfers "
        "offsite/test_small_prunes offsite/test_looks offsite/test_many_archives offsite/test_wal_retention "
        "offsite/test_forgery offsite/test_verification_rotation offsite/test_bring_back offsite/test_races "
        "offsite/test_chained_copies offsite/test_one_bad_archive monitoring/test_offsite_status offsite/test_copy "
        "drill/test_offsite_drill",
    ),
    _of(
        "pitr",
        f"{_ENGINE}/pitr",
        "archive_index archiver_watch base_chain base_manifest base_stream combine data_dir health locales look lsn "
        "moment offsite_wal plan prune_wal receiver recovery relations replaced replaced_wal replication scratch "
        "scratch_server timeline unpack wal_archive wal_feed wal_fetch wal_objects wal_reader wal_sources wal_state "
        "wal_trust window",
        "pitr/test_wal_names pitr/test_pitr_words pitr/test_base_files pitr/test_wal_files pitr/test_wal_parts "
        "pitr/test_scratch_parts pitr/test_recovery_parts pitr/test_watched_servers pitr/test_window "
        "pitr/test_moment pitr/test_replaced_clusters pitr/test_wal_fetch "
        "pitr/test_wal_signatures pitr/test_wal_sources pitr/test_races pitr/test_clocks pitr/test_locales "
        "pitr/test_coverage pitr/test_replication pitr/test_archiver pitr/test_recovery pitr/test_incremental_bases "
        "pitr/test_wal_service pitr/test_restore_to_a_moment pitr/test_offsite_wal pitr/test_new_server "
        "pitr/test_retention_of_wal pitr/test_server_versions",
    ),
    _of(
        "storage",
        f"{_ENGINE}/storage",
        "age_format age_keys backend credentials directory encrypt_helper encryption object_store objects open s3_head "
        "sftp signature versions",
        "storage/test_store_words storage/test_s3_parts storage/test_sftp_parts storage/test_store_keys "
        "storage/test_objects storage/test_locks_of_objects storage/test_age storage/test_faulty_stores "
        "storage/test_backends",
    ),
    _of(
        "worker-gate",
        "worker",
        "signing keys authorization moments arguments delivery rejections gate allowed_paths",
        "worker/test_gate worker/test_arguments worker/test_allowed_paths worker/test_signing "
        "worker/test_authorization worker/test_moments worker/test_delivery worker/test_keys "
        "repository/test_sync_order worker/test_hostile_broker worker/test_worker_tasks",
    ),
    _of(
        "worker-tasks",
        "worker",
        "tasks execution recovery progress client",
        "worker/test_operations worker/test_execution worker/test_task_steps worker/test_recovery worker/test_progress "
        "worker/test_client worker/test_health worker/test_hostile_broker worker/test_worker_tasks "
        "worker/test_worker_crash",
    ),
    _of(
        "worker-broker",
        "worker",
        "results health untrusted broker_messages remote_control",
        "worker/test_untrusted worker/test_remote_control worker/test_health_answers worker/test_results "
        "worker/test_client worker/test_task_steps worker/test_health worker/test_hostile_broker "
        "worker/test_hostile_keys",
    ),
    _of(
        "beat",
        "beat",
        "due verify_rotation backoff loop heartbeat repository_facts base_keeper",
        "beat/test_due beat/test_heartbeat beat/test_base_keeper beat/test_beat_loop beat/test_repository_facts "
        "beat/test_missing_copies beat/test_beat",
    ),
    _of(
        "watcher",
        "beat/watcher",
        "change_set debounce exclusions outbox loop inotify",
        "beat/test_debounce beat/test_outbox beat/test_watcher_loop beat/test_inotify beat/test_watcher",
    ),
)
