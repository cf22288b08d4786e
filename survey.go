package migrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/definition"
)

// After the switch, the application changes the target's schema. A survey says what there is; compared with the one
// before, it says what was added. See ARCHITECTURE.md, Additions on the target.

// SchemaSurvey is the target's schema at one instant, as [Giver.SurveySchema] reads it.
type SchemaSurvey struct {
	fingerprint string
	tables      []*Table // with the OIDs that they have there
	objects     []definition.Object
}

// surveyed is the survey that the source was brought in line with, as the journal keeps it. What could not be carried
// back is not in it, so that every later comparison finds it again.
type surveyed struct {
	Fingerprint string              `json:"fingerprint"`
	Tables      []*Table            `json:"tables"`
	Objects     []definition.Object `json:"objects"`
	// Settled tells that it is of after the switch, and Told is what was said of what could not be carried back.
	Settled bool     `json:"settled"`
	Told    []string `json:"told"`
}

// HeldTable is a table whose rows do not come back to the source. All others' do.
type HeldTable struct {
	// ID is its OID on the source; 0: the source does not have it.
	ID     uint32    `json:"-"`
	Table  string    `json:"table"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

func (t HeldTable) String() string { return t.Table + ": " + t.Reason }

// SurveySchema implements [Giver].
func (p *PlanetScale) SurveySchema(ctx context.Context) (*SchemaSurvey, error) {
	s := &SchemaSurvey{}
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, p.pool, options, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('search_path', '', true)`); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, catalogSQL)
		if err != nil {
			return err
		}
		s.tables, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Table, error) {
			var text []byte
			if err := row.Scan(&text); err != nil {
				return nil, err
			}
			t := new(Table)
			return t, json.Unmarshal(text, t)
		})
		if err != nil {
			return err
		}
		if s.objects, err = definition.List(ctx, tx, SchemaName); err != nil {
			return err
		}
		return tx.QueryRow(ctx, fingerprintSQL).Scan(&s.fingerprint)
	})
	if err != nil {
		return nil, fmt.Errorf("survey the target's schema: %w", err)
	}
	return s, nil
}

// DefineObjects implements [Giver].
func (p *PlanetScale) DefineObjects(ctx context.Context, objects []definition.Object) (sql map[string]string,
	err error) {
	err = pgx.BeginTxFunc(ctx, p.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('search_path', '', true)`); err != nil {
			return err
		}
		sql, err = definition.Define(ctx, tx, objects)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the target's schema: %w", err)
	}
	return sql, nil
}

const surveySchema = `
	CREATE TABLE IF NOT EXISTS heroku_migrator.survey (
		only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row), content jsonb NOT NULL);
	CREATE TABLE IF NOT EXISTS heroku_migrator.held (
		name text PRIMARY KEY, table_id bigint NOT NULL, reason text NOT NULL, since timestamptz NOT NULL DEFAULT
			clock_timestamp());`

func saveSurvey(ctx context.Context, tx pgx.Tx, s *surveyed) error {
	text, err := jsonText(s)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO heroku_migrator.survey (content) VALUES ($1::text::jsonb)
		ON CONFLICT (only_row) DO UPDATE SET content = excluded.content`, text)
	return err
}

// recordSurvey keeps what there was before the switch.
func (j *Journal) recordSurvey(ctx context.Context, s *SchemaSurvey) error {
	err := j.tx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, surveySchema+`DELETE FROM heroku_migrator.held`); err != nil {
			return err
		}
		return saveSurvey(ctx, tx, &surveyed{Fingerprint: s.fingerprint, Tables: s.tables, Objects: s.objects})
	})
	if err != nil {
		return fmt.Errorf("journal: record the target's schema: %w", err)
	}
	return nil
}

// surveyed reads it; nil: none was recorded.
func (j *Journal) surveyed(ctx context.Context) (*surveyed, error) {
	var text []byte
	err := j.pool.QueryRow(ctx, `SELECT content FROM heroku_migrator.survey`).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) || sqlState(err) == "42P01" {
		return nil, nil
	}
	s := new(surveyed)
	if err == nil {
		err = json.Unmarshal(text, s)
	}
	if err != nil {
		return nil, fmt.Errorf("journal: read the survey of the target's schema: %w", err)
	}
	return s, nil
}

// Held lists the tables whose rows do not come back to the source, and why.
func (j *Journal) Held(ctx context.Context) ([]HeldTable, error) {
	rows, err := j.pool.Query(ctx, `SELECT table_id, name, reason, since FROM heroku_migrator.held ORDER BY name`)
	var list []HeldTable
	if err == nil {
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t HeldTable, err error) {
			err = row.Scan(&t.ID, &t.Table, &t.Reason, &t.Since)
			return t, err
		})
	}
	if sqlState(err) == "42P01" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal: read the tables that are held back: %w", err)
	}
	return list, nil
}

// errAddedLate says that something was added on the target between the last survey and the moment at which it became
// the one that follows.
var errAddedLate = fmt.Errorf("the target's schema was changed in the very moment of the revert: %w", ErrBusy)

// stillSurveyed makes sure that the source has been brought in line with the target's schema as it is.
func stillSurveyed(ctx context.Context, tx pgx.Tx) error {
	var known *string
	var there bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('heroku_migrator.survey') IS NOT
		NULL`).Scan(&there); err != nil || !there {
		return err
	}
	err := tx.QueryRow(ctx, `SELECT content ->> 'fingerprint' FROM heroku_migrator.survey
		WHERE (content ->> 'settled')::bool`).Scan(&known)
	if errors.Is(err, pgx.ErrNoRows) || known == nil && err == nil {
		return nil
	}
	var now string
	if err == nil {
		err = tx.QueryRow(ctx, fingerprintSQL).Scan(&now)
	}
	if err == nil && rowsPart(now) != rowsPart(*known) {
		err = errAddedLate
	}
	return err
}

// schemaUnit is what is made on the source together, or not at all.
type schemaUnit struct {
	what  string
	keys  []string // of the objects that it makes
	steps []string
	// table is the table whose rows cannot come back without it, on the source; created, the one that it makes.
	table, created string
	// late tells that rows may be in its way that are not yet what they are on the target.
	late bool
	// first tells that it has to be committed before anything can rely on it.
	first bool
	// attach makes leaf a partition, as the last of its steps. If it was a table before, its rows come with the next
	// round.
	attach, leaf string
	emptied      bool
	skipped      bool
	notNull      string // a column of the table of this OID on the target
	of           uint32
	err          error
}

// surveyPlan is what has to be done on the source so that it has what the target has.
type surveyPlan struct {
	before *surveyed
	now    *SchemaSurvey
	units  []*schemaUnit
	held   map[string]string // quoted names of tables, with the reasons
	told   []string          // what is not carried back, and holds no rows back
	resent map[string]bool   // tables that have to be sent whole
	leaves map[string][]Relation
	wanted []definition.Object
	ids    map[string]uint32 // of tables on the source, by their quoted names
	// unlabeled are enums that lost a label; renamed, the new names of tables.
	unlabeled, renamed map[string]bool
	tables             map[string]*Table // as the journal knows them
}

func (p *surveyPlan) holdf(table, format string, args ...any) {
	if _, ok := p.held[table]; !ok {
		p.held[table] = fmt.Sprintf(format, args...)
	}
}

// compareSurveys plans what has to be made on the source. Nothing but partitions is ever dropped there.
func compareSurveys(before *surveyed, now *SchemaSurvey, tables []TableStatus) *surveyPlan {
	p := &surveyPlan{
		before: before, now: now, held: map[string]string{}, resent: map[string]bool{}, leaves: map[string][]Relation{},
		ids: map[string]uint32{}, unlabeled: map[string]bool{}, renamed: map[string]bool{}, tables: map[string]*Table{},
	}
	for _, t := range tables {
		p.ids[t.Table.Ident()], p.tables[t.Table.Ident()] = t.Table.ID, t.Table
	}
	p.compareTables()
	p.compareObjects()
	return p
}

// compareTables finds what holds tables back, and plans new columns.
func (p *surveyPlan) compareTables() {
	is := map[uint32]*Table{}
	partition := map[uint32]string{} // of which table
	for _, t := range p.now.tables {
		is[t.ID] = t
		for _, l := range t.Leaves {
			partition[l.ID] = t.Ident()
		}
	}
	for _, o := range p.now.objects {
		if o.Kind == definition.Attach && partition[o.ID] == "" {
			partition[o.ID] = o.Name
		}
	}
	for _, k := range p.before.Tables {
		t := is[k.ID]
		switch {
		case t == nil && partition[k.ID] != "": // it is attached
		case t == nil:
			p.holdf(k.Ident(), "it was dropped on the target: create it again there, or force a revert, which goes "+
				"back without it")
		case t.Ident() != k.Ident():
			p.holdf(k.Ident(), "it is %s on the target now: give it its name again", t)
		case t.Kind != k.Kind || !slices.Equal(t.Parents, k.Parents):
			p.holdf(k.Ident(), "it became %s on the target, or inherits from other tables now: undo that there", t.Kind)
		default:
			p.compareColumns(k, t)
		}
	}
}

// compareColumns compares a table that is still there.
func (p *surveyPlan) compareColumns(k, t *Table) {
	for _, c := range k.Columns {
		i := slices.IndexFunc(t.Columns, func(o Column) bool { return o.Num == c.Num })
		switch {
		case i < 0:
			p.holdf(k.Ident(), "column %s of %s is gone on the target, renamed or of another type: undo that there",
				c.Name, k)
		case t.Columns[i].Name != c.Name:
			p.holdf(k.Ident(), "column %s of %s is gone or renamed (%s now): undo that there", c.Name, k,
				t.Columns[i].Name)
		case t.Columns[i].Type != c.Type || t.Columns[i].Collation != c.Collation:
			p.holdf(k.Ident(), "column %s of %s is of another type on the target (%s, and was %s): undo that there",
				c.Name, k, t.Columns[i].Type, c.Type)
		case t.Columns[i].Generated != c.Generated || t.Columns[i].Virtual != c.Virtual:
			p.holdf(k.Ident(), "column %s of %s is generated on the target now, or no longer: undo that there",
				c.Name, k)
		}
	}
	if len(k.Key) > 0 && !slices.Equal(k.Key, t.Key) && !t.hasKey(k.Key) {
		p.holdf(k.Ident(), "its key (%s) is gone on the target: add it again there", strings.Join(k.Key, ", "))
	}
	if _, held := p.held[k.Ident()]; held {
		return
	}
	d := newSchemaDiff(&schemaPlan{}, nil, false)
	d.columnsOf(k, t, false)
	unit := &schemaUnit{what: "columns of " + t.String(), table: t.Ident()}
	for _, step := range d.Steps {
		if step.Object != nil { // NOT NULL
			p.units = append(p.units, &schemaUnit{
				what: "NOT NULL of " + step.Object.Name, steps: []string{step.SQL}, late: true,
				notNull: strings.TrimPrefix(step.Object.Name, t.Name+" "), of: t.ID,
			})
			continue
		}
		unit.steps = append(unit.steps, step.SQL)
	}
	if len(unit.steps) > 0 {
		p.units = append([]*schemaUnit{unit}, p.units...)
	}
	added := len(t.Columns) > len(k.Columns)
	p.resent[t.Ident()] = added && (t.Keyless() || d.missingDiffers(k, t))
}

// hasKey tells whether all columns of a key are there and NOT NULL; whether they are unique still, the index says.
func (t *Table) hasKey(key []string) bool {
	return len(t.Key) > 0 && !slices.ContainsFunc(key, func(name string) bool {
		return !slices.ContainsFunc(t.Columns, func(c Column) bool { return c.Name == name && c.NotNull })
	})
}

func identOf(o definition.Object, name string) string {
	return pgx.Identifier{o.Schema, name}.Sanitize()
}

// rootOf is the table that a relation is a partition of, through all levels; the relation itself, if of none.
func rootOf(objects []definition.Object, id uint32) string {
	parent, name := map[uint32]uint32{}, map[uint32]string{}
	for _, o := range objects {
		switch o.Kind { //nolint:exhaustive // no other relations are partitions
		case definition.Attach:
			var of uint32
			if _, err := fmt.Sscan(o.Version, &of); err == nil {
				parent[o.ID] = of
			}
		case definition.Table:
			name[o.ID] = identOf(o, o.Name)
		}
	}
	for range len(parent) {
		of, ok := parent[id]
		if !ok {
			break
		}
		id = of
	}
	return name[id]
}

// compareObjects plans everything but columns.
func (p *surveyPlan) compareObjects() {
	known, there := map[string]definition.Object{}, map[string]definition.Object{}
	tableBefore, tableNow := map[uint32]definition.Object{}, map[uint32]definition.Object{}
	wasPartition := map[uint32]bool{}
	for _, o := range p.before.Objects {
		known[o.Key()] = o
		switch o.Kind { //nolint:exhaustive // the others are looked up by name
		case definition.Table:
			tableBefore[o.ID] = o
		case definition.Attach:
			wasPartition[o.ID] = true
		}
	}
	for _, o := range p.now.objects {
		there[o.Key()] = o
		if o.Kind == definition.Table {
			tableNow[o.ID] = o
		}
	}
	for _, o := range p.before.Objects {
		if _, ok := there[o.Key()]; !ok {
			p.gone(o, tableNow)
		}
	}
	for _, o := range p.now.objects {
		k, ok := known[o.Key()]
		switch {
		case ok && k.Version == o.Version, o.Kind == definition.Label && p.unlabeled[identOf(o, o.Relation)]:
		case o.Kind == definition.Table && tableBefore[o.ID].Name != "": // it was renamed, which is told
			p.renamed[identOf(o, o.Name)] = true
		case o.Kind == definition.Table && ok && wasPartition[k.ID]: // rotated: one of the same name
			p.units = append(p.units, &schemaUnit{
				what: k.String() + " is gone", table: rootOf(p.before.Objects, k.ID), late: true,
				steps: []string{detach(Relation{Schema: o.Schema, Name: o.Name}), `DROP TABLE IF EXISTS ` +
					identOf(o, o.Name) + ` CASCADE`},
			})
			p.wanted = append(p.wanted, o)
		case o.Kind == definition.Table && ok:
			p.holdf(identOf(o, o.Name),
				"it was dropped and made again on the target: what is on the source is another table")
		case ok && !carried[o.Kind]:
			if o.Kind != definition.Type && o.Kind != definition.Extension && o.Kind != definition.Constraint &&
				o.Kind != definition.ForeignKey {
				p.told = append(p.told, o.String()+" was changed on the target, and not on the source")
			}
		default:
			p.wanted = append(p.wanted, o)
		}
	}
}

// carried are the kinds whose later forms are carried back, since a statement replaces one by the other.
var carried = map[definition.Kind]bool{
	definition.Function: true, definition.View: true, definition.Comment: true, definition.Attach: true,
	definition.RowSecurity: true,
}

// gone is for an object that is not there any more.
func (p *surveyPlan) gone(o definition.Object, tables map[uint32]definition.Object) {
	leaf := identOf(o, o.Name)
	switch o.Kind {
	case definition.Attach:
		is, still := tables[o.ID]
		root := rootOf(p.before.Objects, o.ID)
		steps := []string{detach(Relation{Schema: o.Schema, Name: o.Name})}
		switch {
		case !still:
			steps = append(steps, `DROP TABLE IF EXISTS `+leaf+` CASCADE`)
		case is.Schema != o.Schema || is.Name != o.Name:
			p.holdf(root, "its partition %s.%s is %s.%s on the target now: give it its name again", o.Schema, o.Name,
				is.Schema, is.Name)
			return
		}
		if _, held := p.held[root]; !held {
			p.units = append(p.units, &schemaUnit{what: o.String() + " is gone", steps: steps, table: root, late: true})
		}
	case definition.Label:
		p.holdUsers(o)
	case definition.Table:
		if slices.ContainsFunc(p.before.Tables, func(t *Table) bool { return t.ID == o.ID }) { // said already
			return
		}
	default:
		_, held := p.held[identOf(o, o.Relation)]
		if held || o.Kind == definition.IndexAttach || o.Kind == definition.Comment || p.ofGone(o) {
			return
		}
		p.told = append(p.told, o.String()+" was dropped on the target, and stays on the source")
	}
}

// ofGone tells whether an object went with its table or partition.
func (p *surveyPlan) ofGone(o definition.Object) bool {
	name := o.Relation
	if o.Kind == definition.Sequence || o.Kind == definition.Owned || name == "" {
		return false
	}
	return !slices.ContainsFunc(p.now.objects, func(t definition.Object) bool {
		return t.Schema == o.Schema && t.Name == name && (t.Kind == definition.Table ||
			t.Kind == definition.MatView || t.Kind == definition.View)
	})
}

// holdUsers holds the tables back that have columns of an enum which lost a label: the source's rows may have it. Nor
// does the source get labels that are new then, since one may be the other.
func (p *surveyPlan) holdUsers(label definition.Object) {
	p.unlabeled[identOf(label, label.Relation)] = true
	for _, t := range p.before.Tables {
		for _, c := range t.Columns {
			name := strings.TrimSuffix(c.Type, "[]")
			if strings.ReplaceAll(name, `"`, "") == label.Schema+"."+label.Relation {
				p.holdf(t.Ident(), "label '%s' of type %s is gone or renamed on the target: undo that there",
					label.Name, identOf(label, label.Relation))
			}
		}
	}
}

// makeUnits groups what has to be made, given the statements, and what the source has already.
func (p *surveyPlan) makeUnits(sql map[string]string, source []definition.Object) {
	have := map[string]bool{}
	for _, o := range source {
		have[o.Key()] = true
	}
	known := map[string]bool{}
	existed := map[uint32]bool{} // tables
	for _, o := range p.before.Objects {
		known[o.Key()] = true
		if o.Kind == definition.Table {
			existed[o.ID] = true
		}
	}
	partitions := map[string]bool{}
	for _, o := range p.now.objects {
		if o.Kind == definition.Attach {
			partitions[identOf(o, o.Name)] = true
		}
	}
	list := slices.Clone(p.wanted)
	slices.SortStableFunc(list, func(a, b definition.Object) int { return a.Rank() - b.Rank() })
	created := map[string]*schemaUnit{}
	for _, o := range list {
		statement, ok := sql[o.Key()]
		relation := identOf(o, o.Relation)
		_, heldBack := p.held[relation]
		unit := &schemaUnit{what: o.String(), keys: []string{o.Key()}, steps: []string{statement}}
		switch {
		case o.Relation != "" && (heldBack || p.renamed[relation] || created[relation] != nil &&
			created[relation].skipped):
			continue
		case have[o.Key()] && !known[o.Key()] && o.Kind != definition.Attach:
			if o.Kind == definition.Table {
				created[identOf(o, o.Name)] = nil
			}
			continue
		case !ok && o.Kind == definition.Comment:
			continue
		case !ok:
			unit.err = errors.New("there is no statement by which we could make it")
		case o.Kind == definition.Label:
			unit.first = true
		case o.Kind == definition.Table:
			unit.created = identOf(o, o.Name)
			created[unit.created] = unit
		case o.Kind == definition.Attach:
			p.attachUnit(o, statement, created[identOf(o, o.Name)], existed[o.ID], have[o.Key()], known[o.Key()])
			continue
		case o.Kind == definition.Constraint || o.Kind == definition.Index:
			if u := created[relation]; u != nil && (u.leaf != "" || o.Kind == definition.Constraint) {
				u.keys, u.steps = append(u.keys, o.Key()), append(u.steps, statement)
				continue
			}
			unit.late = true
			if t := p.tables[relation]; t != nil && !partitions[relation] && wouldBeKey(t, statement) {
				unit.err = errors.New("the table is captured by what tells its rows apart now; add it after the " +
					"migration")
			}
		case o.Kind == definition.ForeignKey:
			unit.late = true
		}
		p.units = append(p.units, unit)
	}
}

// wouldBeKey tells whether a constraint or index may tell the rows of a table apart, by which it is not captured.
func wouldBeKey(t *Table, statement string) bool {
	return strings.Contains(statement, " PRIMARY KEY ") || t.Keyless() && strings.Contains(statement, " UNIQUE ")
}

// attachUnit makes a table a partition, together with the table if that is new.
func (p *surveyPlan) attachUnit(o definition.Object, statement string, unit *schemaUnit, existed, there, again bool) {
	leaf, root := identOf(o, o.Name), rootOf(p.now.objects, o.ID)
	if _, held := p.held[root]; held {
		if unit != nil {
			unit.skipped = true
		}
		return
	}
	p.leaves[root] = append(p.leaves[root], Relation{Schema: o.Schema, Name: o.Name})
	if unit == nil {
		if there && !existed {
			return // a process that is gone has made it
		}
		unit = &schemaUnit{what: o.String(), emptied: existed}
		p.units = append(p.units, unit)
		p.resent[root] = p.resent[root] || again
	}
	unit.keys, unit.table, unit.leaf, unit.attach = append(unit.keys, o.Key()), root, leaf, statement
}
