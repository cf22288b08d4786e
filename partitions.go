package migrator

import "fmt"

// treeOf is a table for FROM: the relations (relid) of a partition tree and whether they hold rows (isleaf), given the
// OID of its root, or a set of these. A relation without partitions is a tree of its own. pg_partition_tree tells the
// same, but locks each of them until the transaction ends: whoever drops a partition waits for that, or becomes a
// deadlock's victim, and thousands of locks fill the server's table of them.
func treeOf(root string) string {
	return fmt.Sprintf(`(
		WITH RECURSIVE tree(relid) AS (
			SELECT (%s)::oid
			UNION ALL
			SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.relid JOIN pg_class p ON p.oid =
			i.inhrelid AND p.relispartition
			WHERE to_jsonb(i) ->> 'inhdetachpending' IS DISTINCT FROM 'true')
		SELECT tree.relid, p.relkind <> 'p' AS isleaf FROM tree JOIN pg_class p ON p.oid = tree.relid)`, root)
}
