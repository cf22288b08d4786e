// Package migrator moves a live Heroku Postgres database to PlanetScale Postgres while the application keeps
// writing to it.
//
// Heroku offers no logical replication, so changes are captured by triggers that note the keys of changed
// rows. The rows that were there before are copied in parallel, in chunks that survive any restart. Rounds
// then carry what has changed, until the target follows the source closely. At the switch, writes on the
// source are refused for a moment, the last changes and the sequences are carried over, and the application
// moves on. Until the migration is completed, it can go back.
//
// # In one call
//
//	src, err := migrator.OpenHeroku(ctx, os.Getenv("HEROKU_URL"), migrator.HerokuConfig{})
//	…
//	dst, err := migrator.OpenPlanetScale(ctx, os.Getenv("PLANETSCALE_URL"), migrator.PlanetScaleConfig{})
//	…
//	m, err := migrator.New(migrator.Config{Source: src, Target: dst, Logger: slog.Default()})
//	…
//	err = m.Run(ctx, migrator.UntilInSync)                 // copy, and follow until in sync
//	_, err = m.Do(ctx, migrator.CommandSwitch, false)      // the target takes over
//	_, err = m.Do(ctx, migrator.CommandComplete, false)    // nothing of ours is left
//
// A process may be killed at any moment: Run goes on where it was. Other processes can look at the migration
// ([Migrator.Status]) and steer it ([Migrator.Do]) meanwhile. All state is in the target database, in a schema
// of its own, so nothing on the migrator's own disk matters.
//
// # Phase by phase
//
// The phases are functions over the [Source] and [Target] interfaces, which a program can call by itself, and
// wrap with its own behaviour: [Preflight], [CloneSchema], [Capture], [Copy], [BuildIndexes], [Replicate],
// [Cutover], [Revert], [Verify], [Cleanup]. [Migrator] does nothing but compose them. A program that calls
// them by itself takes the lead first ([Journal.TryLead]) and makes it known to the source ([Source.Claim]).
//
// # Concurrency, cancellation, errors
//
// Every call that blocks takes a context; when it is done, the call returns soon, and what was under way is
// rolled back by the servers. No goroutine outlives the call that started it, but for the one that watches a
// [Lead], which ends with its release. The package has no global state, installs no signal handler and never
// writes to standard output.
//
// Errors say what to do. [RefusedError] means that a precondition does not hold and nothing was done;
// [Retryable] tells whether trying again can help. Passwords appear in no error, event or log line.
//
// ARCHITECTURE.md states what is guaranteed (invariants I1 to I9) and why it holds.
package migrator
