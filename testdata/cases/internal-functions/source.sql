-- Functions that only a superuser can create, an operator and an index over them.
CREATE TABLE words (id int PRIMARY KEY, w text); INSERT INTO words SELECT i, 'w' || i FROM generate_series(1, 100) i;
CREATE OPERATOR ~~~ (LEFTARG = text, RIGHTARG = text, FUNCTION = alike);
CREATE INDEX words_shout ON words (shout(w));
CREATE VIEW alikes AS SELECT id FROM words WHERE (w OPERATOR(public.~~~) 'w1') > 0.5;
