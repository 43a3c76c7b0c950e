# SPDX-License-Identifier: Apache-2.0
"""Support tickets by composition: the utility task, which team should take a ticket.

The instruction is the system turn; a ticket is a problem and a greeting or a closing. Test tickets meet the same
problems in new words around them: things, greetings and closings that no training ticket has, as tomorrow's tickets at
the same desk would.
"""

from __future__ import annotations

from moored.data.synthetic_harmful import lines

TEAMS = ("Billing", "Shipping", "Technical", "Account")

INSTRUCTION = "Route this support ticket to Billing, Shipping, Technical or Account. Answer with one word."

PROBLEMS = {
    "Billing": lines("""
        I was charged twice for one {thing}
        the refund for my {thing} has not come back to my card
        the invoice for the {thing} shows the wrong amount
        my voucher was not taken off the price of the {thing}
        you took money for a {thing} that I never ordered
        the receipt for the {thing} leaves out the tax
        the monthly fee went up although my plan did not change
        my bank says your payment request was a duplicate
        I need the invoice made out to my company
        the instalment for the {thing} was taken ten days early
        I still pay for a subscription that I ended in May
        the price at checkout was higher than the one I agreed to
        my card was declined although there is enough money on it
        I paid by transfer and still get payment reminders
        the exchange rate on my bill for the {thing} looks wrong
        I returned the {thing} and only got half of the money
        a fee for express service is on my bill and I did not choose it
        the credit note for the {thing} carries an old date
        my direct debit for the {thing} failed and you added a penalty
        I cancelled the {thing} and the money is still gone
        the statement lists a charge for a {thing} from last year
        the sale price of the {thing} is not on my invoice
        the same {thing} appears on two invoices
        you promised me money back for the {thing} and nothing has come
        my discount is missing on the bill
        my credit card shows a charge that I do not know
        I was asked to pay for the {thing} again
        the deposit for the {thing} was never credited to me
        I cannot see why the total on my last statement is so high
        the yearly plan was renewed and debited without asking me
    """),
    "Shipping": lines("""
        the {thing} should have been here on Monday and is not
        the courier left the {thing} in the rain
        the box of the {thing} arrived crushed
        the parcel with the {thing} went to the house next door
        the tracking page says delivered but I have no {thing}
        one of the two {thing}s was missing from the package
        I need the {thing} sent to my office instead
        the driver did not ring and took the {thing} back to the depot
        the {thing} has been stuck at customs for nine days
        you sent me a blue {thing} instead of a green one
        the pick-up point had closed before the {thing} got there
        I want the {thing} to come on Saturday rather than on Friday
        nobody has collected the {thing} that I want to send back
        the label on the carton carries someone else's name
        half of my delivery has been lost between two depots
        the postman refused to carry the {thing} upstairs
        the {thing} has not left your warehouse for two weeks
        the courier delivered the {thing} to my old address
        the package with the {thing} was empty when I got it
        the {thing} has a dent because it was badly packed
        the van never came although I waited for the {thing} all day
        the estimated arrival of my {thing} moves back every morning
        my {thing} is four days late
        the package was torn open and the {thing} was damaged
        the courier took the {thing} to the wrong street
        the parcel has not moved since Tuesday
        the carton held only one {thing} although I ordered two
        the {thing} was handed to a stranger in my building
        I would like the {thing} dropped off at another address
        the {thing} came back to you because nobody rang at my door
    """),
    "Technical": lines("""
        the app closes as soon as I open the order of my {thing}
        the payment page stays white on my phone
        uploading a photo of the {thing} ends with error 502
        the map with the parcel does not load in any browser
        the search finds nothing, not even {thing}
        after the update the buttons no longer react
        the website takes a full minute to show one {thing}
        the sign-in screen freezes before I can type anything
        exporting my invoices makes the program hang
        the {device} no longer connects to the wireless network
        notifications arrive hours late on my tablet
        the light on the {device} flickers and it turns off
        the video on the page of the {thing} plays without sound
        sync stops at 40 percent and starts again
        your site logs a script error when I sort the list
        the scanner in the app does not read the code on my {thing}
        an error message appears when I download my receipt
        the program crashes when I print the label for the {thing}
        the page for refunds shows only a blank screen
        the {device} does not start after the new firmware
        clicking the menu does nothing on my laptop
        the form jumps back to the top whenever I press enter
        the app crashes whenever I look for a {thing}
        the page with my invoices shows an error message
        the {device} freezes after the latest update
        the order form does not load on my laptop
        the button to track the {thing} does nothing when I click it
        the chat window goes blank when I attach a picture
        your software no longer starts on my computer
        the {device} beeps and shows a red fault code
    """),
    "Account": lines("""
        I forgot my password and the reset mail never comes
        I want to change the email address I sign in with
        I am locked out after three wrong attempts
        please close my profile and delete my data
        I lost the phone that gets my security codes
        my colleague needs her own login for our company
        I have two profiles and would like to merge them
        my surname in the profile is misspelt
        I need to hand the admin role to my successor
        someone from another country has signed in as me
        I cannot prove my identity because my passport expired
        please remove a former employee from our users
        my birthday is stored wrongly and I cannot edit it
        I want to turn off the second step at sign-in
        your system says that my username is already taken
        I never agreed to share my profile with partners
        my new password is rejected each time I try to log in
        a link to confirm my email has expired
        I want to delete an old profile that I no longer use
        my login shows the data of another member
        please add my assistant as a second user
        my access was blocked after I changed my phone number
        the link for a new password does not reach me
        I want to delete my profile for good
        I need to change my name and email in the profile
        my login is blocked and I do not know why
        I want to give a new colleague access as a user
        the security code goes to a number that I no longer have
        my username should be changed after my wedding
        I think a stranger knows my password and uses my login
    """),
}
"""What decides."""

CLOSINGS = lines("""
    Please help.
    Can you sort this out?
    What should I do now?
    I am quite annoyed.
    Thanks in advance.
    It is rather urgent.
    No hurry.
    Please call me back.
    This is the second time.
    Kind regards, Ana.
""")

HELD_OUT_CLOSINGS = lines("""
    Let me know soon.
    I hope for a quick answer.
    Many thanks, Tom.
    I write for the third time.
""")

GREETINGS = lines("""
    Hello,
    Hi team,
    Good morning,
    Dear all,
    Hi there,
""")

HELD_OUT_GREETINGS = lines("""
    Good evening,
    Dear support,
    Hey,
""")

THINGS = lines("""
    lamp
    printer
    jacket
    headset
    bicycle
    coffee machine
    camera
    desk
    tent
    keyboard
""")

DEVICES = lines("""
    printer
    headset
    camera
    keyboard
""")
"""Things that can break."""

HELD_OUT_THINGS = lines("""
    toaster
    guitar
    monitor
    suitcase
    phone
""")

HELD_OUT_DEVICES = lines("""
    tablet
    monitor
    phone
""")
