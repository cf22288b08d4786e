INSERT INTO pages (id, title) VALUES (400, 'Later Page');
DELETE FROM bag WHERE title = 'Thing 3';
UPDATE bag SET title = 'Thing X' WHERE n < 10;
UPDATE app.pg_class SET relname = 'still not';
