package migrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// How the state machine follows the source's schema, and what the target does for it.

// schemaIsOther tells whether an error may come from a schema that has changed: a round says so; a chunk fails at a
// table or column that is not there any more.
func schemaIsOther(err error) bool {
	if wentBack(err) {
		return false
	}
	switch sqlState(err) {
	case "42703", "42P01", "42704", "22P02", "23502", "23505", "23514", "3F000":
		return true
	}
	return errors.Is(err, ErrSchemaChanged) || errors.Is(err, errNoKeyIndex)
}

// followSchema follows the source's schema by the policy. If that has not changed, the cause stands.
func (m *Migrator) followSchema(ctx context.Context, s *State, cause error) error {
	err := m.follow(ctx, s)
	switch {
	case errors.Is(err, errSameSchema) && errors.Is(cause, ErrSchemaChanged): // changed, and changed back
		return nil
	case errors.Is(err, errSameSchema):
		held, holdErr := m.cfg.Target.HoldBack(ctx, cause)
		if held != "" {
			message := fmt.Sprintf("constraint %s of the target refuses rows that the source has, and is held back "+
				"until the switch", held)
			m.log.WarnContext(ctx, message)
			m.publish(Event{Kind: EventWarning, Phase: s.Phase, Message: message})
			return m.journal.Record(ctx, Event{Kind: EventWarning, Message: message})
		}
		if err = cause; holdErr != nil {
			err = holdErr
		}
	}
	if err == nil || Retryable(err) {
		return err
	}
	if isAside(s, err) {
		return m.setAside(ctx, s, err)
	}
	m.publish(Event{Kind: EventFailure, Phase: s.Phase, Message: err.Error()})
	return errors.Join(err, m.journal.Fail(ctx, s.Phase, err))
}

// followBeforeSwitch makes the target's schema the source's, if the policy is to do so.
func (m *Migrator) followBeforeSwitch(ctx context.Context, s *State) error {
	if s.Schema == "" {
		return nil
	}
	// the comparison that follows names what has changed
	if m.cfg.SchemaChanges == SchemaFail || m.cfg.SchemaChanges == SchemaPause {
		plan, err := planSchema(ctx, m.cfg.Source, m.cfg.Target)
		if err != nil || plan == nil || len(plan.said) > 0 || len(plan.impossible) > 0 {
			return err
		}
		return plan.carry(ctx, m.cfg.Source, m.cfg.Target)
	}
	err := m.follow(ctx, s)
	if errors.Is(err, errSameSchema) {
		return nil
	}
	return err
}

var errSameSchema = errors.New("the schema is the one that is known")

func (m *Migrator) follow(ctx context.Context, s *State) error {
	m.followed.Store(time.Now().UnixNano())
	plan, err := planSchema(ctx, m.cfg.Source, m.cfg.Target)
	if err != nil {
		return err
	}
	if plan == nil {
		return errSameSchema
	}
	what := strings.Join(plan.said, "; ")
	switch {
	case what == "" && len(plan.impossible) == 0: // nothing that concerns the target
		return plan.carry(ctx, m.cfg.Source, m.cfg.Target)
	case m.cfg.SchemaChanges == SchemaFail:
		return refuse("follow the schema", "The source's schema has changed (%s), and the policy is to fail. Undo "+
			"the change, or run again with another policy.", what)
	case m.cfg.SchemaChanges == SchemaPause && rowsPart(s.SchemaSeen) != rowsPart(plan.Fingerprint):
		message := fmt.Sprintf("paused: the source's schema has changed (%s); resume to carry that over", what)
		m.log.WarnContext(ctx, message)
		m.publish(Event{Kind: EventWarning, Phase: s.Phase, Message: message})
		return m.journal.pauseForSchema(ctx, plan.Fingerprint, message)
	}
	if err := plan.carry(ctx, m.cfg.Source, m.cfg.Target); err != nil {
		return err
	}
	message := "the source's schema has changed, and the target's with it: " + what
	m.log.InfoContext(ctx, message)
	m.publish(Event{Kind: EventSchema, Phase: s.Phase, Message: message})
	return m.journal.Record(ctx, Event{Kind: EventSchema, Message: message})
}

// ChangeSchema implements [Target].
func (p *PlanetScale) ChangeSchema(ctx context.Context, change *SchemaChange) error {
	for _, sql := range change.Labels { // a label cannot be used by the transaction that adds it
		if _, err := p.pool.Exec(ctx, sql); err != nil {
			return fmt.Errorf("follow the schema: %s: %w", sql, err)
		}
	}
	err := p.journal.tx(ctx, func(tx pgx.Tx) error {
		if err := preparePath(ctx, tx, change.functions()); err != nil {
			return err
		}
		if _, err := p.silence(ctx, tx); err != nil {
			return err
		}
		for _, t := range change.Empty {
			var there bool
			if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, t.Ident()).Scan(&there); err != nil {
				return err
			}
			if !there { // somebody has dropped it
				continue
			}
			if _, err := tx.Exec(ctx, `DROP INDEX IF EXISTS `+imageIndex(t)); err != nil {
				return err
			}
			if err := truncateAll(ctx, tx, Round{Changes: []RoundChange{{Change: Change{Table: t,
				Truncated: []Relation{t.Relation}}}}}); err != nil {
				return err
			}
		}
		var again []SchemaStep // what needed something that came later: a function over a new table
		for i := range change.Steps {
			if err := change.take(ctx, tx, change.Steps[i]); err != nil {
				return err
			}
			if change.failed(change.Steps[i]) {
				again = append(again, change.Steps[i])
			}
		}
		for _, step := range again {
			change.put(*step.Object)
			if err := change.take(ctx, tx, step); err != nil {
				return err
			}
		}
		return change.record(ctx, tx)
	})
	p.ops.forget()
	if err != nil {
		return fmt.Errorf("follow the schema: %w", err)
	}
	return nil
}

// take carries out a step. What fails now, for rows that come with the next round, is left to the switch where that can
// be.
func (c *SchemaChange) take(ctx context.Context, tx pgx.Tx, step SchemaStep) error {
	// A step may rewrite a table, and so run what any expression on it reaches.
	o := SchemaObject{Functions: c.functions()}
	if step.Object != nil {
		o.Type = step.Object.Type
	}
	try := func(sql string) error {
		return savepoint(ctx, tx, func(tx executor) error {
			_, err := tx.Exec(ctx, o.underPath(sql)+";\n"+leavePath)
			return err
		})
	}
	err := try(step.SQL)
	if step.Object != nil && step.Object.Type == "TABLE ATTACH" && sqlState(err) == "23514" {
		err = try(besideDefault(step))
	}
	if step.Object != nil && step.Object.Type == "FUNCTION" && sqlState(err) == "42P13" { // it returns something else
		err = try(dropping(*step.Object) + ";\n" + step.SQL)
	}
	if err == nil {
		return nil
	}
	if step.Object == nil || sqlState(err) == "" || Retryable(err) {
		return fmt.Errorf("%s: %w", step.SQL, err)
	}
	switch sqlState(err) {
	case "42P07", "42710", "42P16", "42723": // it is there: it came with what it belongs to, or somebody has made it
		if !step.Replaces {
			return nil
		}
	case "55000":
		// of an identity column, with which it came
		if step.Object.Type == "SEQUENCE" && strings.Contains(step.SQL, "ADD GENERATED") {
			return nil
		}
	}
	o = *step.Object
	if reason, follows := followsLeftOut(o, err, c.Objects); follows {
		o.State, o.Error = ObjectLeftOut, reason
		c.put(o)
		return nil
	}
	o.State, o.Error = ObjectFailed, err.Error()
	if step.Replaces {
		o.Error = "it has another definition on the source now, and was not given that here: " + o.Error
	}
	if step.Drops { // which is no reason to make it again
		o.Error = "it is gone on the source, and could not be dropped here: " + err.Error()
		c.put(o)
		return nil
	}
	switch o.Type {
	case "INDEX", "CONSTRAINT", "FK CONSTRAINT", "CHECK CONSTRAINT", typeValidation, typeNotNull, typeCheck:
		o.State, o.Stage = ObjectPending, StageSwitch
		if o.Undo == "" {
			o.Undo = dropping(o)
		}
		if o.Type == typeValidation {
			o.Undo = ""
		}
	}
	c.put(o)
	return nil
}

// besideDefault attaches a partition whose rows are still in the default one, and moves them. What belongs into it is
// told by a partition of the same bounds in a temporary table.
func besideDefault(step SchemaStep) string {
	leaf := pgx.Identifier{step.Object.Schema, step.Object.Name}.Sanitize()
	_, attach, _ := strings.Cut(step.SQL, "ALTER TABLE ONLY ")
	root, bounds, _ := strings.Cut(strings.TrimRight(attach, "; \n"), " ATTACH PARTITION "+leaf+" ")
	return fmt.Sprintf(`DO $room$ DECLARE
		others regclass := (SELECT nullif(partdefid, 0) FROM pg_partitioned_table WHERE partrelid = '%[2]s'::regclass);
		columns text := (SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attrelid =
			'%[1]s'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
		belongs text;
	BEGIN
		IF others IS NULL THEN
			RAISE check_violation USING MESSAGE = 'rows of the partition do not belong into it';
		END IF;
		EXECUTE 'CREATE TEMP TABLE heroku_migrator_like (LIKE %[2]s) PARTITION BY ' ||
			pg_get_partkeydef('%[2]s'::regclass);
		EXECUTE 'CREATE TEMP TABLE heroku_migrator_part PARTITION OF heroku_migrator_like %[4]s';
		belongs := pg_get_partition_constraintdef('pg_temp.heroku_migrator_part'::regclass);
		EXECUTE format('CREATE TEMP TABLE heroku_migrator_moved AS SELECT %%s FROM %%s WHERE %%s', columns, others,
			belongs);
		EXECUTE format('DELETE FROM %%s WHERE %%s', others, belongs);
		EXECUTE '%[3]s';
		EXECUTE format('INSERT INTO %%s (%%s) OVERRIDING SYSTEM VALUE SELECT %%s FROM pg_temp.heroku_migrator_moved',
			'%[1]s'::regclass, columns, columns);
		DROP TABLE pg_temp.heroku_migrator_like, pg_temp.heroku_migrator_moved;
	END $room$`, quoteText(leaf), quoteText(root), quoteText(step.SQL), quoteText(bounds))
}

// functions are those that any object's creation may run.
func (c *SchemaChange) functions() []string {
	var list []string
	for _, o := range c.Objects {
		list = append(list, o.Functions...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (c *SchemaChange) put(o SchemaObject) {
	if o.ID == 0 {
		for _, other := range c.Objects {
			o.ID = max(o.ID, other.ID+1)
		}
	}
	for i := range c.Objects {
		if c.Objects[i].ID == o.ID {
			c.Objects[i] = o
			return
		}
	}
	c.Objects = append(c.Objects, o)
}

// failed tells whether a step's object could not be made.
func (c *SchemaChange) failed(step SchemaStep) bool {
	return step.Object != nil && slices.ContainsFunc(c.Objects,
		func(o SchemaObject) bool { return o.ID == step.Object.ID && o.State == ObjectFailed })
}

// record writes down what there is now. Tables that are new join with the next round: their logs say all about them.
func (c *SchemaChange) record(ctx context.Context, tx pgx.Tx) error {
	for _, id := range c.Dropped {
		if _, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.chunks WHERE table_id = $1`, int64(id)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.tables WHERE id = $1`, int64(id)); err != nil {
			return err
		}
	}
	for _, t := range c.Tables {
		spec, err := jsonText(t)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
			INSERT INTO heroku_migrator.tables (id, spec, state, captured) VALUES ($1, $2, 'indexed', true)
			ON CONFLICT (id) DO UPDATE SET spec = excluded.spec`, int64(t.ID), spec); err != nil {
			return err
		}
		leaves, err := jsonText(t.Leaves)
		if err != nil {
			return err
		}
		// What is not copied yet has other names, or is not there any more.
		if _, err := tx.Exec(ctx, `
			UPDATE heroku_migrator.chunks c SET spec = jsonb_set(c.spec, '{leaf}', (c.spec -> 'leaf') ||
				jsonb_build_object('schema', l ->> 'schema', 'name', l ->> 'name'))
			FROM jsonb_array_elements($2::jsonb) AS l WHERE c.table_id = $1 AND NOT c.done AND c.spec -> 'leaf' -> 'id'
				= l -> 'id'`, int64(t.ID), leaves); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
			DELETE FROM heroku_migrator.chunks c WHERE c.table_id = $1 AND NOT c.done
			AND NOT EXISTS (SELECT 1 FROM jsonb_array_elements($2::jsonb) AS l WHERE c.spec -> 'leaf' -> 'id' = l ->
				'id')`, int64(t.ID), leaves); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, `DELETE FROM heroku_migrator.objects`); err != nil {
		return err
	}
	if err := insertObjects(ctx, tx, c.Objects); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE heroku_migrator.migration SET schema = $1, search_path = $2`, c.Fingerprint, c.SearchPath)
	return err
}
