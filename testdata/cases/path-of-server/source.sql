-- The server's configuration says where names lead, and functions of the application's look like the system's.
CREATE SCHEMA app;
CREATE FUNCTION squash(v text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT lower(replace(v, ' ', '-')) $$;
CREATE FUNCTION slug(v text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT squash(v) $$;
CREATE TABLE pages (id int PRIMARY KEY, title text, slug text GENERATED ALWAYS AS (slug(title)) STORED);
CREATE TABLE bag (title text, n int);
CREATE INDEX ON pages (slug(title));
CREATE INDEX ON bag (slug(title));
INSERT INTO pages (id, title) SELECT i, 'Page ' || i FROM generate_series(1, 300) i;
INSERT INTO bag SELECT 'Thing ' || i % 7, i FROM generate_series(1, 50) i;
CREATE FUNCTION count(int) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'count is the application''s'; END $$;
CREATE FUNCTION format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'format is the application''s'; END $$;
CREATE FUNCTION sum(smallint) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'sum is the application''s'; END $$;
CREATE FUNCTION unnest(int[]) RETURNS SETOF int LANGUAGE plpgsql AS $$ BEGIN RAISE 'unnest is the application''s'; END $$;
CREATE FUNCTION equal(bigint, int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE '= is the application''s'; END $$;
CREATE OPERATOR = (FUNCTION = equal, LEFTARG = bigint, RIGHTARG = int);
CREATE TYPE text AS (a int);
CREATE TABLE app.pg_class (id int PRIMARY KEY, relname pg_catalog.text);
INSERT INTO app.pg_class VALUES (1, 'not the catalog');
