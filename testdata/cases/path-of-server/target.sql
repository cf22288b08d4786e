INSERT INTO pages (id, title) VALUES (500, 'Made There');
UPDATE pages SET title = 'New ' || id WHERE id < 10;
DELETE FROM bag WHERE title = 'Thing 4';
INSERT INTO bag VALUES ('made there', 1);
