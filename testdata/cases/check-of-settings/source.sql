-- CHECKs by a setting, by a function over another table, over the whole row and over an extension's type.
CREATE TABLE tenants (id int PRIMARY KEY, tenant text CHECK (tenant = current_setting('app.tenant', true)), g text GENERATED ALWAYS AS (upper(tenant)) STORED CHECK (g <> 'NOBODY'));
SET app.tenant = 'acme';
INSERT INTO tenants SELECT i, 'acme' FROM generate_series(1, 500) i;
CREATE TABLE zlimits (name text PRIMARY KEY, most int);
INSERT INTO zlimits VALUES ('stock', 100);
CREATE FUNCTION most(text) RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT most FROM public.zlimits WHERE name = $1); END $$;
CREATE TABLE articles (id int PRIMARY KEY, stock int CHECK (stock <= most('stock')), CONSTRAINT whole CHECK (articles IS NOT NULL));
INSERT INTO articles SELECT i, i FROM generate_series(1, 100) i;
UPDATE zlimits SET most = 50;
CREATE FUNCTION strict_once(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE TABLE lies (id int PRIMARY KEY, n int CHECK (strict_once(n)));
INSERT INTO lies SELECT i, i FROM generate_series(1, 100) i;
CREATE OR REPLACE FUNCTION strict_once(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 0';
CREATE TABLE bag (a int, at timestamptz CHECK (at > now()));
INSERT INTO bag SELECT i % 3, now() + interval '0.2 s' FROM generate_series(1, 60) i;
SELECT pg_sleep(0.3);
