-- One of everything that a role without superuser rights can make. A statement ends at the end of a line.

CREATE SCHEMA "Select";
CREATE SCHEMA app;
CREATE SCHEMA "we ird.""schema""";
CREATE EXTENSION citext;
CREATE EXTENSION hstore WITH SCHEMA app;
CREATE EXTENSION ltree;
CREATE EXTENSION btree_gist;
CREATE EXTENSION pg_trgm;
COMMENT ON SCHEMA app IS 'where the application lives';

-- Types.
CREATE TYPE app.mood AS ENUM ('sad', 'happy');
ALTER TYPE app.mood ADD VALUE 'it''s "fine"' BEFORE 'happy';
ALTER TYPE app.mood ADD VALUE 'ecstatic';
COMMENT ON TYPE app.mood IS 'labels that were added later sort by another order than that of their OIDs';
CREATE DOMAIN app.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN app.scores AS int[] CONSTRAINT few CHECK (cardinality(VALUE) < 5) DEFAULT '{1}';
CREATE DOMAIN app.code AS app.positive NOT NULL;
COMMENT ON CONSTRAINT few ON DOMAIN app.scores IS 'not many';
CREATE TYPE app.point3 AS (x float8, y numeric(10, 3), note text COLLATE "C");
CREATE TYPE app.line3 AS (a app.point3, b app.point3[], m app.mood);
CREATE FUNCTION app.float_gap(float8, float8) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT $1 - $2';
CREATE TYPE app.floatrange AS RANGE (subtype = float8, subtype_diff = app.float_gap, multirange_type_name = app.floatranges);
CREATE COLLATION app.german (provider = icu, locale = 'de-u-co-phonebk');
CREATE COLLATION app.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);

CREATE TABLE app.types (
	id uuid PRIMARY KEY, ci citext UNIQUE, hs app.hstore, lt ltree, mood app.mood, code app.code, scores app.scores, line app.line3, lines app.line3[],
	r app.floatrange, rs app.floatranges, dr daterange, mr int4multirange, texts text[][], moods app.mood[], j json, jb jsonb, x xml, b bytea, bits bit varying(9),
	n numeric, f float8, f4 float4, ts timestamptz, iv interval, tt timetz, m money, i inet, mac macaddr8, p point, pg polygon, ch char(5), c1 "char", nm name,
	o oid, rc regclass, tsv tsvector, tsq tsquery, lsn pg_lsn, de text COLLATE app.german, nc text COLLATE app.nocase, snap pg_snapshot);
INSERT INTO app.types SELECT gen_random_uuid(), 'CaSe' || i, 'a=>1, "b c"=>NULL'::app.hstore, ('Top.Science.x' || i)::ltree, (enum_range(NULL::app.mood))[1 + i % 4], i, ARRAY[i, NULL],
	ROW(ROW(i / 3.0, i / 7.0, E'tab\there, "quoted", (a,b)\\ ' || i)::app.point3, ARRAY[ROW(1, 2, NULL)::app.point3, NULL], 'happy')::app.line3, ARRAY[ROW(NULL, '{}', 'sad')::app.line3],
	app.floatrange(i, i + 0.1), '{[1,2),[3.5,4)}', '[2024-01-01,infinity)', '{[1,3),(7,)}', ARRAY[['a', NULL], [E'\\', E'"\n']], enum_range(NULL::app.mood),
	'{"b":1, "a":1,  "a":2}', '{"b":1, "a":[1e400, null]}', '<a>&lt;é</a>', decode(md5(i::text), 'hex'), B'10101',
	CASE i % 4 WHEN 0 THEN 'NaN' WHEN 1 THEN 1e-200 WHEN 2 THEN -0.00 ELSE 12345678901234567890.123456789 END, CASE i % 3 WHEN 0 THEN '-0'::float8 WHEN 1 THEN 'NaN' ELSE 1e308 / i END,
	i / 3.0, CASE WHEN i % 5 = 0 THEN '-infinity'::timestamptz ELSE '0044-03-15 12:00 BC'::timestamptz + i * interval '1 us' END, '1 year -2 days 00:00:00.000001', '12:34:56.789+14',
	i * 1.11, '::ffff:1.2.3.4/120', '08:00:2b:01:02:03:04:05', '(1e300,-0)', '((0,0),(1,1),(1,0))', 'ab', E'\\', 'name', 4294967295, 'pg_class', 'a:1A fat:2B', 'fat & (rat | cat)', '16/B374D848',
	'Äpfel', 'CASE' || i, '10:20:10,14,15'
FROM generate_series(1, 60) i;

-- Names.
CREATE TABLE "Select"."order" ("user" int PRIMARY KEY, "select" text DEFAULT 'a''b', "Mixed Case" text, "dot.dot" text, "quo""te" text, "ünïcödé 表" text, "$1" int, "%s\\ " text);
CREATE INDEX "idx.""with' space" ON "Select"."order" ("Mixed Case", ("dot.dot" || "quo""te"));
COMMENT ON TABLE "Select"."order" IS E'a\ncomment; with ''quotes'' and \\';
COMMENT ON COLUMN "Select"."order"."quo""te" IS '-- Name: evil; Type: TABLE; Schema: x; Owner: y';
COMMENT ON INDEX "Select"."idx.""with' space" IS 'index';
INSERT INTO "Select"."order" SELECT i, 'x', 'y', E'\\N', E'\\.', E'\t\r\n', i, '' FROM generate_series(1, 20) i;
CREATE TABLE "we ird.""schema"""."ta.ble ""x""" ("a.b" int, "c""d" text COLLATE "C", PRIMARY KEY ("c""d", "a.b"));
INSERT INTO "we ird.""schema"""."ta.ble ""x""" SELECT i, 'v' || i FROM generate_series(1, 20) i;
CREATE TABLE "日本語のテーブル" ("キー" int PRIMARY KEY, "line
break" text);
INSERT INTO "日本語のテーブル" SELECT i, '値' || i FROM generate_series(1, 20) i;
CREATE TABLE n23456789_123456789_123456789_123456789_123456789_123456789_123 (
	k23456789_123456789_123456789_123456789_123456789_123456789_123 int CONSTRAINT p23456789_123456789_123456789_123456789_123456789_123456789_123 PRIMARY KEY);
INSERT INTO n23456789_123456789_123456789_123456789_123456789_123456789_123 SELECT generate_series(1, 20);
CREATE TABLE "new
line" (id int PRIMARY KEY, v int);
CREATE INDEX "an index
with two lines" ON "new
line" (v);
INSERT INTO "new
line" SELECT i, i FROM generate_series(1, 20) i;

-- Odd tables.
CREATE TABLE nothing ();
CREATE TABLE empty (id int PRIMARY KEY);
CREATE TABLE really_empty (id int PRIMARY KEY);
CREATE TABLE parent_without_columns ();
CREATE TABLE child_with_columns (id int PRIMARY KEY) INHERITS (parent_without_columns);
INSERT INTO child_with_columns SELECT generate_series(1, 20);
CREATE FUNCTION app.double(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN i * 2; END $$;
CREATE TABLE generated_only (id int GENERATED ALWAYS AS (app.double(21)) STORED PRIMARY KEY);
INSERT INTO generated_only DEFAULT VALUES;
CREATE TABLE generated_too (a int PRIMARY KEY, b int GENERATED ALWAYS AS (app.double(a)) STORED, c text GENERATED ALWAYS AS (upper('x' || a)) STORED UNIQUE);
INSERT INTO generated_too SELECT generate_series(1, 20);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, v text);
INSERT INTO unlogged (v) SELECT 'v' || i FROM generate_series(1, 20) i;
CREATE TABLE dropped_columns (a int, b text, c int, d text);
INSERT INTO dropped_columns SELECT i, 'b', i, 'd' FROM generate_series(1, 20) i;
ALTER TABLE dropped_columns DROP COLUMN a, DROP COLUMN b, ADD COLUMN e int DEFAULT 7 NOT NULL, ADD PRIMARY KEY (c);
CREATE TABLE typed OF app.point3 (x WITH OPTIONS PRIMARY KEY);
INSERT INTO typed SELECT i, i, 'n' FROM generate_series(1, 20) i;
CREATE TABLE huge (id int PRIMARY KEY, b bytea, t text);
ALTER TABLE huge ALTER b SET STORAGE EXTERNAL;

-- Sequences and identities.
CREATE SEQUENCE app.odd AS smallint INCREMENT BY -3 MINVALUE -300 MAXVALUE 30 START WITH 30 CACHE 5 CYCLE;
COMMENT ON SEQUENCE app.odd IS 'goes down';
CREATE SEQUENCE app.untouched START 1000;
SELECT nextval('app.odd'), nextval('app.odd');
CREATE TABLE identities (a int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 10) PRIMARY KEY, b int GENERATED BY DEFAULT AS IDENTITY, c serial, d smallserial,
	e int DEFAULT nextval('app.odd') * 2);
INSERT INTO identities DEFAULT VALUES;
INSERT INTO identities OVERRIDING SYSTEM VALUE VALUES (105, 7, 7, 7, 7);

-- Constraints and indexes.
CREATE TABLE app.bookings (id int CONSTRAINT "the key" PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, room int, during tsrange, name text, kind app.mood,
	CONSTRAINT no_overlap EXCLUDE USING gist (room WITH =, during WITH &&) WHERE (room > 0) DEFERRABLE,
	CONSTRAINT sane CHECK (NOT isempty(during)) NO INHERIT);
CREATE UNIQUE INDEX bookings_name_idx ON app.bookings (name, room) INCLUDE (kind);
ALTER TABLE app.bookings ADD CONSTRAINT bookings_unique_name UNIQUE USING INDEX bookings_name_idx;
COMMENT ON CONSTRAINT no_overlap ON app.bookings IS 'one at a time';
COMMENT ON CONSTRAINT sane ON app.bookings IS 'check';
CREATE UNIQUE INDEX bookings_partial ON app.bookings (room) WHERE kind = 'sad' AND room < 0;
CREATE INDEX bookings_expression ON app.bookings USING btree (lower(name) COLLATE app.german DESC NULLS LAST, app.double(room)) WITH (fillfactor = 70);
CREATE INDEX bookings_trigram ON app.bookings USING gin (name gin_trgm_ops);
CREATE INDEX bookings_hash ON app.bookings USING hash (room);
CREATE INDEX bookings_brin ON app.bookings USING brin (room) WITH (pages_per_range = 4);
CREATE UNIQUE INDEX bookings_nulls ON app.bookings (room, id) NULLS NOT DISTINCT;
ALTER INDEX app.bookings_expression ALTER COLUMN 2 SET STATISTICS 500;
ALTER TABLE app.bookings CLUSTER ON bookings_expression;
INSERT INTO app.bookings SELECT i, i, tsrange('2024-01-01', '2024-01-02'), 'n' || i, 'happy' FROM generate_series(1, 20) i;
ALTER TABLE app.bookings ADD CONSTRAINT later CHECK (room < 1000) NOT VALID;
CREATE TABLE cycle_a (id int PRIMARY KEY, b int);
CREATE TABLE cycle_b (id int PRIMARY KEY, a int REFERENCES cycle_a DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE cycle_a ADD FOREIGN KEY (b) REFERENCES cycle_b DEFERRABLE INITIALLY DEFERRED;
INSERT INTO cycle_b VALUES (1); INSERT INTO cycle_a VALUES (1, 1); UPDATE cycle_b SET a = 1;
CREATE TABLE app.lines (booking int REFERENCES cycle_a DEFERRABLE, name text, room int, no int,
	FOREIGN KEY (name, room) REFERENCES app.bookings (name, room) MATCH FULL ON UPDATE CASCADE ON DELETE SET NULL, PRIMARY KEY (booking, no));
ALTER TABLE app.lines ADD CONSTRAINT unchecked FOREIGN KEY (no) REFERENCES empty NOT VALID;
COMMENT ON CONSTRAINT unchecked ON app.lines IS 'fk';
INSERT INTO empty VALUES (7);
INSERT INTO app.lines VALUES (1, 'n3', 3, 7);

-- Replica identity, settings, statistics.
CREATE TABLE identity_full (id int PRIMARY KEY, v text);
ALTER TABLE identity_full REPLICA IDENTITY FULL;
CREATE TABLE identity_index (id int PRIMARY KEY, v int NOT NULL);
CREATE UNIQUE INDEX identity_index_v ON identity_index (v);
ALTER TABLE identity_index REPLICA IDENTITY USING INDEX identity_index_v, CLUSTER ON identity_index_pkey;
CREATE TABLE identity_nothing (id int PRIMARY KEY) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, toast.autovacuum_enabled = off);
ALTER TABLE identity_nothing REPLICA IDENTITY NOTHING;
CREATE TABLE settings (id int PRIMARY KEY, a text, b text, c bytea, x int, y int);
ALTER TABLE settings ALTER a SET STATISTICS 1000, ALTER a SET (n_distinct = -0.5), ALTER b SET STORAGE MAIN, ALTER c SET STORAGE EXTERNAL, ALTER c SET COMPRESSION pglz,
	SET (parallel_workers = 2);
INSERT INTO settings SELECT i, 'a' || i % 5, 'b', 'c', i % 10, i % 10 FROM generate_series(1, 500) i;
CREATE STATISTICS app.xy (ndistinct, dependencies, mcv) ON x, y FROM settings;
CREATE STATISTICS "Expr stats" ON app.double(x), (y + 1) FROM settings;
ALTER STATISTICS app.xy SET STATISTICS 77;
COMMENT ON STATISTICS app.xy IS 'they go together';
INSERT INTO identity_full SELECT i, 'v' FROM generate_series(1, 20) i;
INSERT INTO identity_index SELECT i, i FROM generate_series(1, 20) i;
INSERT INTO identity_nothing SELECT generate_series(1, 20);

-- Partitions, in several schemas and levels.
CREATE TABLE app.events (id bigint, at date, kind text, v text, PRIMARY KEY (id, at, kind)) PARTITION BY RANGE (at);
CREATE TABLE app.events_2023 PARTITION OF app.events FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE "Select"."events 2024" PARTITION OF app.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') PARTITION BY LIST (kind);
CREATE TABLE "Select"."events 2024 a" PARTITION OF "Select"."events 2024" FOR VALUES IN ('a');
CREATE TABLE "events 2024 rest" (kind text NOT NULL, v text, at date NOT NULL, gone int, id bigint NOT NULL);
ALTER TABLE "events 2024 rest" DROP COLUMN gone, ADD PRIMARY KEY (at, kind, id);
ALTER TABLE "events 2024 rest" DROP CONSTRAINT "events 2024 rest_pkey", ADD CONSTRAINT "rest key" PRIMARY KEY (id, at, kind);
CREATE INDEX "rest v" ON "events 2024 rest" (v);
ALTER TABLE "Select"."events 2024" ATTACH PARTITION "events 2024 rest" DEFAULT;
CREATE TABLE app.events_default PARTITION OF app.events DEFAULT;
CREATE INDEX events_v ON app.events (v);
CREATE INDEX events_expression ON app.events (lower(v)) WHERE kind <> 'none';
CREATE INDEX events_only ON ONLY app.events (kind);
COMMENT ON INDEX app.events_v IS 'partitioned index';
COMMENT ON INDEX "rest v" IS 'attached index';
COMMENT ON TABLE "Select"."events 2024" IS 'sub';
COMMENT ON COLUMN "events 2024 rest".v IS 'own';
ALTER TABLE "events 2024 rest" ALTER v SET DEFAULT 'other', ADD CONSTRAINT own CHECK (v <> 'bad');
INSERT INTO app.events SELECT i, date '2023-06-01' + i * 10, CASE i % 3 WHEN 0 THEN 'a' ELSE 'b' || i END, 'v' || i FROM generate_series(1, 100) i;
CREATE STATISTICS app.events_stats ON kind, v FROM app.events;
CREATE TABLE hashed (id int, v text, PRIMARY KEY (id)) PARTITION BY HASH (id);
CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1) WITH (fillfactor = 60);
INSERT INTO hashed SELECT i, 'v' FROM generate_series(1, 50) i;
CREATE TABLE refers (id int PRIMARY KEY REFERENCES hashed);
INSERT INTO refers SELECT generate_series(1, 50, 5);
CREATE TABLE inherited (id int PRIMARY KEY, v text);
CREATE TABLE heir (w text, PRIMARY KEY (id)) INHERITS (inherited);
ALTER TABLE heir ALTER v SET DEFAULT 'heir';
INSERT INTO inherited SELECT i, 'v' FROM generate_series(1, 20) i;
INSERT INTO heir SELECT i, 'v', 'w' FROM generate_series(1, 30) i;

-- Functions that rely on keys, and what relies on them.
CREATE TABLE zz_keyed (id int PRIMARY KEY, v text, n int);
INSERT INTO zz_keyed SELECT i, 'v' || i, i FROM generate_series(1, 20) i;
CREATE FUNCTION app.by_key(i int) RETURNS text LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT v FROM public.zz_keyed WHERE id = i GROUP BY id; END;
CREATE FUNCTION app.by_key_too(i int) RETURNS text LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT upper(app.by_key(i)); END;
CREATE TABLE aa_uses (id int PRIMARY KEY, n int);
INSERT INTO aa_uses SELECT i, i FROM generate_series(1, 20) i;
CREATE INDEX aa_uses_by_key ON aa_uses (app.by_key(n));
CREATE UNIQUE INDEX aa_uses_by_key_too ON aa_uses (app.by_key_too(n)) WHERE app.by_key(n) IS NOT NULL;
CREATE STATISTICS aa_stats ON app.by_key(n), id FROM aa_uses;
ALTER TABLE aa_uses ADD CONSTRAINT by_key_excludes EXCLUDE USING btree (app.by_key(n) WITH =);
COMMENT ON INDEX aa_uses_by_key IS 'late';
COMMENT ON STATISTICS aa_stats IS 'late too';
CREATE TABLE aa_parts (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
CREATE TABLE aa_parts_1 PARTITION OF aa_parts FOR VALUES FROM (0) TO (1000);
CREATE INDEX aa_parts_by_key ON aa_parts (app.by_key(n));
INSERT INTO aa_parts SELECT i, i FROM generate_series(1, 20) i;
CREATE PROCEDURE app.proc(INOUT a int, VARIADIC b text[] DEFAULT '{}') LANGUAGE plpgsql AS $$ BEGIN a := a + 1; COMMIT; END $$;
CREATE AGGREGATE app.longest(text) (sfunc = textcat, stype = text, initcond = '');
CREATE FUNCTION app.distance(app.point3, app.point3) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT abs($1.x - $2.x)';
CREATE FUNCTION app.flat(app.point3) RETURNS point LANGUAGE sql IMMUTABLE AS 'SELECT point($1.x, $1.y)';
CREATE OPERATOR app.<-> (leftarg = app.point3, rightarg = app.point3, function = app.distance);
CREATE CAST (app.point3 AS point) WITH FUNCTION app.flat(app.point3) AS ASSIGNMENT;
CREATE FUNCTION app.secret() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog RETURN 42;
REVOKE ALL ON FUNCTION app.secret() FROM PUBLIC;
CREATE FUNCTION app.stable_default() RETURNS text LANGUAGE sql STABLE AS 'SELECT max(v) FROM public.zz_keyed';
CREATE TABLE defaults (id int PRIMARY KEY, v text DEFAULT app.stable_default(), at timestamptz DEFAULT now(), u uuid DEFAULT gen_random_uuid(), ok boolean CHECK (app.double(id) > 0));
INSERT INTO defaults (id) SELECT generate_series(1, 20);

-- Views on views on views.
CREATE VIEW app.by_group AS SELECT id, v, n FROM zz_keyed GROUP BY id; -- relies on the key
CREATE MATERIALIZED VIEW app.zzz_counts AS SELECT b.v, app.by_key(b.id) AS k, count(*) AS n FROM app.by_group b GROUP BY b.id, b.v;
CREATE UNIQUE INDEX zzz_counts_v ON app.zzz_counts (v);
CREATE INDEX zzz_counts_k ON app.zzz_counts (lower(k));
CREATE VIEW over_counts AS SELECT *, n * 2 AS twice FROM app.zzz_counts;
CREATE MATERIALIZED VIEW aaa_total AS SELECT sum(twice) AS total FROM over_counts;
CREATE VIEW "Select"."last view" WITH (security_barrier) AS SELECT * FROM aaa_total;
COMMENT ON MATERIALIZED VIEW aaa_total IS 'total';
COMMENT ON VIEW over_counts IS 'over';
COMMENT ON COLUMN over_counts.twice IS 'two times';
CREATE VIEW writable AS SELECT id, n FROM aa_uses WHERE n < 100 WITH LOCAL CHECK OPTION;
ALTER VIEW writable ALTER n SET DEFAULT 5;
CREATE VIEW lines_view AS SELECT booking, no FROM app.lines;
CREATE FUNCTION app.instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER instead INSTEAD OF INSERT OR UPDATE ON lines_view FOR EACH ROW EXECUTE FUNCTION app.instead();
COMMENT ON TRIGGER instead ON lines_view IS 'instead';
CREATE TRIGGER touched BEFORE UPDATE OF n ON aa_uses FOR EACH ROW WHEN (OLD.n IS DISTINCT FROM NEW.n) EXECUTE FUNCTION app.instead();
CREATE TRIGGER always AFTER INSERT ON aa_uses REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION app.instead();
ALTER TABLE aa_uses ENABLE ALWAYS TRIGGER always;
CREATE TRIGGER never BEFORE DELETE ON aa_uses EXECUTE FUNCTION app.instead();
ALTER TABLE aa_uses DISABLE TRIGGER never;
CREATE CONSTRAINT TRIGGER constraint_trigger AFTER INSERT ON aa_uses DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION app.instead();
CREATE TRIGGER on_partitions AFTER INSERT ON app.events FOR EACH ROW EXECUTE FUNCTION app.instead();
COMMENT ON TRIGGER always ON aa_uses IS 'always';
CREATE RULE keep AS ON DELETE TO identity_full WHERE OLD.id < 0 DO INSTEAD NOTHING;
CREATE RULE log AS ON UPDATE TO lines_view DO ALSO SELECT 1;
COMMENT ON RULE keep ON identity_full IS 'rule';
CREATE FUNCTION app.of_table(e zz_keyed) RETURNS SETOF zz_keyed LANGUAGE sql AS 'SELECT (e).*';
CREATE FUNCTION app.of_view() RETURNS SETOF app.by_group LANGUAGE sql AS 'SELECT * FROM app.by_group';

-- Row security, text search, foreign data.
CREATE TABLE secured (id int PRIMARY KEY, owner name);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON secured AS RESTRICTIVE FOR UPDATE USING (owner = CURRENT_USER) WITH CHECK (app.double(id) > 0);
COMMENT ON POLICY mine ON secured IS 'policy';
INSERT INTO secured SELECT i, 'me' FROM generate_series(1, 20) i;
CREATE TEXT SEARCH DICTIONARY app.dict (TEMPLATE = simple, STOPWORDS = english);
CREATE TEXT SEARCH CONFIGURATION app.search (COPY = english);
ALTER TEXT SEARCH CONFIGURATION app.search ALTER MAPPING FOR asciiword WITH app.dict;
CREATE TABLE searched (id int PRIMARY KEY, body text, v tsvector GENERATED ALWAYS AS (to_tsvector('app.search', body)) STORED);
CREATE INDEX searched_v ON searched USING gin (v);
INSERT INTO searched SELECT i, 'the quick fox ' || i FROM generate_series(1, 20) i;
