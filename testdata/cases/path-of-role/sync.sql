INSERT INTO people (name) VALUES ('Åsa');
UPDATE people SET name = 'Øyvind ' || id WHERE id < 10;
DELETE FROM people WHERE id = 20;
UPDATE parts SET name = 'Źrebię' WHERE n = 1;
INSERT INTO pets VALUES (100, 1, 'Ýr');
