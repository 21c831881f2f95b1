"""The command that changes the package; workers could not import it from here."""

from tests.noticed.survey import main

main()
