-- Constraints of domains that refuse values which are there: by the moment, by other tables, and never validated.
CREATE TABLE countries (code text PRIMARY KEY);
INSERT INTO countries VALUES ('de'), ('fr'), ('xx');
CREATE FUNCTION known(c text) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT c IN (SELECT code FROM public.countries)';
CREATE DOMAIN country AS text CONSTRAINT exists CHECK (known(VALUE)) CONSTRAINT short CHECK (length(VALUE) = 2);
COMMENT ON CONSTRAINT exists ON DOMAIN country IS 'it''s one of ours';
COMMENT ON CONSTRAINT short ON DOMAIN country IS 'ISO 3166';
CREATE DOMAIN future AS timestamptz NOT NULL DEFAULT now() + interval '1 h' CONSTRAINT "not yet" CHECK (VALUE > now());
CREATE DOMAIN positive AS int;
CREATE DOMAIN score AS positive CHECK (VALUE < 1000 AND current_setting('app.scores', true) IS DISTINCT FROM 'off');
CREATE TYPE place AS (c country, s int);
CREATE TABLE addresses (id int PRIMARY KEY, c country NOT NULL, n positive, cs country[], p place);
CREATE TABLE events (id future PRIMARY KEY, s score);
INSERT INTO addresses SELECT i, 'xx', -i, '{de,fr}', ROW ('xx', 3)::place FROM generate_series(1, 1000) i;
INSERT INTO events SELECT now() + i * interval '1 ms', 5 FROM generate_series(1, 100) i;
ALTER DOMAIN positive ADD CONSTRAINT above CHECK (VALUE > 0) NOT VALID;
COMMENT ON CONSTRAINT above ON DOMAIN positive IS 'from now on';
DELETE FROM countries WHERE code = 'xx';
SELECT pg_sleep(0.5);
