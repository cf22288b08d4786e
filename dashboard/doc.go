// Package dashboard is the migration's web page and its HTTP interface, as a handler that stands alone or is mounted in a program that has
// others:
//
//	d, err := dashboard.New(m, dashboard.Config{Password: password, Log: log})
//	defer d.Close()
//	mux.Handle("/migration/", http.StripPrefix("/migration", d))
//
// It needs no file and no other host. API.md describes every path. Unless the program runs the migration itself ([Config.HostRuns]), the
// dashboard does: /start-migration begins it, and a process that finds one recorded goes on with it. The [migrator.Config] should have
// HoldBeforeCopy set then, so that /start-copy says when the copy begins.
//
// The server's limits of time are the caller's ([http.Server].ReadHeaderTimeout, IdleTimeout). A WriteTimeout has to be longer than 30
// seconds; event streams are exempt from it.
//
// # Metrics
//
// /metrics has these, besides those that every Go program has:
//
//	heroku_migrator_up                          1 if the migration's state could be read the last time
//	heroku_migrator_phase{phase}                1 for the phase in which the migration is, 0 for the others
//	heroku_migrator_paused                      1 if it is paused
//	heroku_migrator_waiting                     1 while something that failed is tried again
//	heroku_migrator_stalled                     1 if something should move and does not
//	heroku_migrator_tables{state}               tables by state
//	heroku_migrator_objects{stage,state}        objects of the schema: done, failed, and in all
//	heroku_migrator_copy_bytes_total            bytes on disk that the copy is about
//	heroku_migrator_copy_bytes_done             of these, committed on the target
//	heroku_migrator_copy_bytes_in_flight        of these, on their way
//	heroku_migrator_copy_bytes_per_second       over the last 20 seconds
//	heroku_migrator_copy_eta_seconds            what is left of the copy; absent if that cannot be said
//	heroku_migrator_copy_workers                chunks that are being copied now
//	heroku_migrator_copy_speed_ratio            1, or less while the copy gives way to the application
//	heroku_migrator_index_builds                indexes and constraints that are being built now
//	heroku_migrator_lag_seconds                 age of the oldest change that is not on the target; absent before the first round
//	heroku_migrator_rounds_total                rounds applied
//	heroku_migrator_rows_applied_total          rows that rounds applied
//	heroku_migrator_rows_waiting                rows that were found on the source and are being applied
//	heroku_migrator_rows_per_second{direction}  in: changed on the source; out: applied by the target
//	heroku_migrator_source_active_sessions      sessions of others that are at work on the source
//	heroku_migrator_source_latency_seconds      how long a small query on the source took, the network counted
//	heroku_migrator_change_log_bytes            size of the change log on the source
//	heroku_migrator_way_back_lag_seconds        the same as lag, for what is written on the target after the switch
//	heroku_migrator_way_back_rows_total         rows that came back
//	heroku_migrator_without_writes_seconds{command}  how long nobody could write, in the last switch and the last revert
//	heroku_migrator_verification_differences    tables that differed when rows were compared last; absent before
//	heroku_migrator_verification_timestamp_seconds   when that was
//	heroku_migrator_preflight_findings{severity}     what the last preflight found
//	heroku_migrator_events_total{kind}          events of this process
//	heroku_migrator_commands_total{command,result}   commands through this dashboard: done, refused, failed
//	heroku_migrator_notifications_total{result} sent, failed, dropped
//	heroku_migrator_streams                     event streams that are open
//	heroku_migrator_status_seconds              how long reading the state took the last time
package dashboard
