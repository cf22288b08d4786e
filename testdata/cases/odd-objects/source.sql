-- What a plain owner may create beside tables: all of it passes.
CREATE TYPE amount AS (value numeric, currency text);
CREATE FUNCTION amount_add(amount, amount) RETURNS amount LANGUAGE sql IMMUTABLE
	AS $$ SELECT ROW($1.value + $2.value, coalesce($1.currency, $2.currency))::amount $$;
CREATE AGGREGATE total(amount) (SFUNC = amount_add, STYPE = amount, INITCOND = '(0,)');
CREATE FUNCTION amount_lt(amount, amount) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.value < $2.value';
CREATE FUNCTION amount_eq(amount, amount) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.value = $2.value';
CREATE OPERATOR <<< (LEFTARG = amount, RIGHTARG = amount, FUNCTION = amount_lt);
CREATE OPERATOR === (LEFTARG = amount, RIGHTARG = amount, FUNCTION = amount_eq, RESTRICT = eqsel);
CREATE FUNCTION amount_text(amount) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT $1.value || ' ' || $1.currency $$;
CREATE CAST (amount AS text) WITH FUNCTION amount_text(amount);
CREATE COLLATION natural_order (provider = icu, locale = 'en-u-kn');
CREATE TEXT SEARCH DICTIONARY plain_words (TEMPLATE = simple, STOPWORDS = english);
CREATE TEXT SEARCH CONFIGURATION plain (COPY = english);
ALTER TEXT SEARCH CONFIGURATION plain ALTER MAPPING FOR asciiword WITH plain_words;
CREATE TABLE bills (id int PRIMARY KEY, a amount, name text COLLATE natural_order, body text);
INSERT INTO bills SELECT i, ROW(i, 'EUR')::amount, 'n' || i, 'some words' FROM generate_series(1, 50) i;
CREATE INDEX bills_words ON bills USING gin (to_tsvector('public.plain', body));
CREATE VIEW totals AS SELECT total(a), (total(a))::text AS words FROM bills;
CREATE FUNCTION broken() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT nothing FROM nowhere); END';
CREATE FUNCTION many(VARIADIC bills[], OUT n int) LANGUAGE sql AS 'SELECT cardinality($1)';
CREATE PROCEDURE tidy() LANGUAGE sql AS 'DELETE FROM bills WHERE id < 0';
CREATE STATISTICS bills_stats ON name, body FROM bills;
CREATE RULE keep AS ON DELETE TO bills WHERE old.id = 1 DO INSTEAD NOTHING;
