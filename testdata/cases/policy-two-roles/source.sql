-- A policy for three roles, two of which the target does not have: both are named at once.
CREATE TABLE docs (id int PRIMARY KEY, owner text);
INSERT INTO docs SELECT i, 'o' FROM generate_series(1, 100) i;
CREATE POLICY see ON docs FOR SELECT TO shared, reporting, "odd ""role""" USING (true);
CREATE POLICY all_of_it ON docs TO PUBLIC USING (owner = current_user);
GRANT SELECT ON docs TO reporting;
