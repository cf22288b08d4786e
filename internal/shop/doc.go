// Package shop is a sample application: the database of a small web shop and
// connections that write to it without pause. The quickstart and the
// integration tests migrate its database while it writes.
//
// [Install] creates a schema that holds most of what a real database may hold
// (keys of many types, partitions, generated columns, triggers, row level
// security, quoted names), [Seed] fills it, [StartWriters] begins to write.
// None of them needs more than the rights of the database's owner.
//
// Every transaction a writer commits leaves one row in shop.ledger, and the
// writer remembers what the server answered. [Writers.CheckLedger] compares
// the two in whichever database the ledger is now: an acknowledged transaction
// that is missing was lost, a refused one that is present was invented.
package shop
