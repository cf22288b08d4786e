-- The application goes on as before.
INSERT INTO people (name) VALUES ('Émile');
UPDATE people SET name = 'Ünal ' || id WHERE id BETWEEN 10 AND 15;
DELETE FROM people WHERE id = 30;
UPDATE parts SET name = 'Å moved' WHERE n = 2;
INSERT INTO parts VALUES ('Žaneta', 500);
INSERT INTO pets VALUES (200, 2, 'Äsop');
SELECT count(*) FROM plain_people WHERE name = plain('Émile');
