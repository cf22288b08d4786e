CREATE ROLE "reporting"; CREATE ROLE "odd ""role""";
